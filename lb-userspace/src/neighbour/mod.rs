//! neighbour.
