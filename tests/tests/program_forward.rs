//! The fixtures that other kernels run in every test run as well: what is forwarded, and the walk through extension headers,
//! which is the hardest part for their verifiers. Few, as a guest needs long to load the program.

use anyhow::Result;
use lb_tests::fixtures;

#[test]
fn forward() -> Result<()> {
    fixtures::check(&fixtures::forward::all())
}

#[test]
fn extension() -> Result<()> {
    fixtures::check(&fixtures::extension::all())
}
