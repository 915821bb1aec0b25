//! In-memory data plane.
