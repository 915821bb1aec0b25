//! Guideway's tasks. `main` only dispatches.
fn main() {}
