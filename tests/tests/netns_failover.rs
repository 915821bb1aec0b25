//! The short form of `cargo xtask failover`: what happens to VIPs and connections when a node, its speaker, its data plane or its
//! pool goes; and nodes that cannot be a fleet.

use anyhow::{Context, Result};
use lb_tests::{
    node::Node,
    process::Process,
    require,
    session::Session,
    topology::{Layout, Topology},
};
use std::{fs, process::Command, sync::Mutex, time::Duration};

/// Milliseconds from a verdict to the withdrawn route at the router: ten times what it takes on a machine that has nothing else
/// to do.
const WITHDRAWN: f64 = 500.0;
/// Milliseconds from the freeze of a node to the first packet at another: ten times less than without BFD.
const REROUTED: f64 = 900.0;
/// Times are measured: one test after the other.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn nodes_come_and_go_and_nothing_breaks() -> Result<()> {
    if !(require::network()
        && require::command("bird", "bird2")
        && require::command("vtysh", "frr"))
    {
        return Ok(());
    }
    let _alone = ALONE.lock();
    let session = Session::unique();
    let directory = session.directory();
    fs::create_dir_all(&directory)?;
    let (file, log) = (
        directory.join("failover.json"),
        directory.join("failover.log"),
    );
    let mut command = Command::new(require::built("failover")?);
    command
        .args("--without-pair --speakers bird,frr --fleets 2,4 --connections 200 --rounds 1 --after 3".split(' '))
        .arg("--json")
        .arg(&file);
    let mut process = Process::start("failover", command, &log)?;
    let ended = process.wait(Duration::from_secs(360));
    println!("{}", process.log());
    let status = ended?;
    let text = fs::read_to_string(&file).context("failover wrote no figures")?;
    let figures: serde_json::Value = serde_json::from_str(&text)?;
    let figure = |name: &str| -> Result<f64> {
        let value = figures[name].as_f64();
        value.with_context(|| format!("no {name} in {figures:#}"))
    };
    for name in ["node_drain", "node_kill", "node_return"] {
        assert_eq!(figure(&format!("{name}.broken"))?, 0.0, "{name}");
    }
    for fleet in ["fleet2", "fleet4"] {
        assert_eq!(figure(&format!("{fleet}.connections"))?, 200.0);
        assert!(figure(&format!("{fleet}.bytes_checked"))? > 100_000.0);
    }
    for speaker in ["bird", "frr"] {
        assert_eq!(figure(&format!("{speaker}.lbd_killed_losses"))?, 0.0);
        for event in ["withdraw", "drain", "speaker_killed", "sick"] {
            // A route that never went has no figure: then the run has failed.
            figure(&format!("{speaker}.{event}_ms"))?;
            figure(&format!("{speaker}.{event}_packet_ms"))?;
        }
        for event in ["return", "announce", "undrain", "speaker_restarted"] {
            figure(&format!("{speaker}.{event}_ms"))?;
        }
        assert!(figure(&format!("{speaker}.withdraw_ms"))? < WITHDRAWN);
    }
    assert!(figure("bfd.reroute_ms")? < REROUTED);
    assert!(status.success(), "{status}");
    Ok(())
}

#[test]
fn two_nodes_with_different_seeds_are_no_fleet_and_the_digest_says_so() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let _alone = ALONE.lock();
    let session = Session::unique();
    fs::create_dir_all(session.directory())?;
    let topology = Topology::create(&session, Layout::Routed, 1)?;
    let second = topology.add_balancer(&session, 2)?;
    let mut nodes = [
        (
            Node::named(&session, "lbd-1", "native")?,
            &topology.balancer,
        ),
        (Node::named(&session, "lbd-2", "native")?, &second),
    ];
    for (node, namespace) in &mut nodes {
        node.start(namespace)?;
        node.ok("service add www --address 10.0.0.1 --port 80 --mode ipip --health none")?;
        let address = topology.backends[0].v4;
        node.ok(&format!(
            "backend add backend-1 --service www --address {address}"
        ))?;
        node.wait_active(&["backend-1"])?;
    }
    let [(first, _), (other, namespace)] = &mut nodes;
    let file = session.directory().join("digest.json");
    fs::write(&file, first.ok("--output json digest")?)?;
    let compare = format!("digest --compare {}", file.display());
    other.ok(&compare)?;

    other.terminate()?;
    let text = fs::read_to_string(other.config())?;
    let seeded = text.replace("hash_seed: 7\n", "hash_seed: 8\n");
    assert_ne!(seeded, text);
    fs::write(other.config(), seeded)?;
    other.start(namespace)?;
    other.wait_active(&["backend-1"])?;
    let differs = other.lbctl(&compare)?;
    assert_eq!(differs.code, 1, "{differs:?}");
    let said = differs.stdout + &differs.stderr;
    assert!(
        said.contains("hash_seed differs: ours 8, theirs 7"),
        "{said}"
    );
    Ok(())
}
