//! The benchmark of frames that are sent for real does what it says: they come back, through the balancer later than without.

use anyhow::Result;
use lb_tests::{
    bench::live::{self, Effort},
    require,
};

#[test]
fn frames_come_back_and_later_through_the_balancer() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let effort = Effort {
        rounds: 3,
        frames: 1 << 14,
    };
    let figures = live::run(effort)?;
    for name in ["mpps.1", "mpps.2", "bare.mpps.1", "bare.mpps.2"] {
        let figure = figures.get(&format!("live.{name}"));
        let figure = figure.filter(|figure| figure.unit == "Mpps" && figure.min() > 0.0);
        assert!(figure.is_some(), "{name}: {figures:?}");
    }
    for quantile in ["p50", "p99", "p999"] {
        for kind in ["latency", "bare.latency", "added"] {
            let name = format!("live.{kind}.{quantile}");
            let figure = figures.get(&name).filter(|figure| figure.unit == "ns");
            assert!(figure.is_some(), "{name}: {figures:?}");
        }
    }
    // What is rare is the machine's; what is common is the balancer's.
    assert!(figures["live.added.p50"].max() > 0.0, "{figures:?}");
    Ok(())
}
