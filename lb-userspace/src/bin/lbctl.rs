//! lbctl.
fn main() {}
