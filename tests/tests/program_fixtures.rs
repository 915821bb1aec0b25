//! The fixtures against the real program, area by area: verdict, every byte that leaves, every counter. `program_forward`
//! has the rest of them.

use anyhow::Result;
use lb_tests::{
    fixture::{tunnel, v4},
    fixtures::{self, Fixture},
    network,
    packet::{ETHERNET, Protocol},
    require,
    world::World,
};
use std::collections::BTreeSet;

#[test]
fn pass() -> Result<()> {
    fixtures::check(&fixtures::pass::all())
}

#[test]
fn drop() -> Result<()> {
    fixtures::check(&fixtures::drop::all())
}

#[test]
fn quic() -> Result<()> {
    fixtures::check(&fixtures::quic::all())
}

#[test]
fn vlan() -> Result<()> {
    fixtures::check(&fixtures::vlan::all())
}

#[test]
fn icmp() -> Result<()> {
    fixtures::check(&fixtures::icmp::all())
}

#[test]
fn gue() -> Result<()> {
    fixtures::check(&fixtures::gue::all())
}

#[test]
fn hash() -> Result<()> {
    fixtures::check(&fixtures::hash::all())
}

#[test]
fn prefix() -> Result<()> {
    fixtures::check(&fixtures::prefix::all())
}

#[test]
fn second() -> Result<()> {
    fixtures::check(&fixtures::second::all())
}

#[test]
fn redirect() -> Result<()> {
    if require::bpf() {
        network::enter()?;
    }
    fixtures::check(&fixtures::redirect::all())
}

#[test]
fn fragment() -> Result<()> {
    fixtures::check(&fixtures::fragment::all())
}

#[test]
fn answer() -> Result<()> {
    fixtures::check(&fixtures::answer::all())
}

#[test]
fn regression() -> Result<()> {
    if require::bpf() {
        network::enter()?;
    }
    fixtures::check(&fixtures::regression::all())
}

#[test]
fn there_are_at_least_150_and_each_has_a_name_of_its_own() {
    let all = fixtures::all();
    let names: BTreeSet<&str> = all.iter().map(|fixture| fixture.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "a name is used twice");
    assert!(all.len() >= 150, "{} fixtures", all.len());
    for fixture in &all {
        assert!(
            !fixture.cases.is_empty() && !fixture.description.is_empty(),
            "{}",
            fixture.name
        );
    }
}

#[test]
fn a_fixture_that_does_not_hold_is_named() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Tcp);
    let mut wrong = Fixture::new(
        "wrong",
        "bytes that are not so",
        &World::of(&packet, &tunnel()),
    )
    .forwarded(&packet, packet.frame());
    wrong.cases[0].counters = Default::default();
    let failures = fixtures::failures(&[wrong])?;
    let [failure] = failures.as_slice() else {
        panic!("{failures:?}");
    };
    for part in ["wrong, packet 0", "should be", "counted"] {
        assert!(failure.contains(part), "{failure}");
    }
    Ok(())
}

#[test]
fn the_kernel_runs_no_program_on_less_than_an_ethernet_header() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Tcp);
    let balancer = World::of(&packet, &tunnel()).install()?;
    for length in 0..ETHERNET {
        let frame = &packet.frame()[..length];
        assert!(balancer.run(frame).is_err(), "{length} bytes were run");
    }
    Ok(())
}
