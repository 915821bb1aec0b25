//! The benchmark of packets does what it says: every case ends as it should, and has a figure.

use anyhow::Result;
use lb_tests::{
    bench::packet::{self, Effort},
    require,
};

#[test]
fn every_case_ends_as_it_should() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let effort = Effort {
        rounds: 2,
        repeats: 1_000,
    };
    let figures = packet::run(effort)?;
    for name in [
        "trivial_tx",
        "pass",
        "tcp4.established.1",
        "tcp4.established.1000",
        "tcp4.established.64000",
        "tcp4.established.1000000",
        "tcp4.syn.1",
        "tcp4.syn.1000000",
        "tcp6.established.1",
        "udp4.1",
    ] {
        let name = format!("packet.{name}");
        let figure = figures.get(&name).filter(|figure| figure.unit == "ns");
        assert!(figure.is_some(), "{name}: {figures:?}");
    }
    Ok(())
}
