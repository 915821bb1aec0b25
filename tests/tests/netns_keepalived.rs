//! Two balancers with keepalived, as `deploy/` ships it: the VIPs are held by the node that can serve them, connections go on
//! when they move, and what is wrong is said with what to do.

use anyhow::{Context, Result, ensure};
use lb_tests::{
    chaos::{moves::perform, pair::Pair},
    keepalived::{TRACK, holds, tracked},
    node::finish,
    process::{Process, output},
    require,
    session::Session,
    topology::{CLIENT_V4, VIP_V4, VIP_V6},
    wait::wait_until,
};
use lb_userspace::api::announce::{AnnouncementView, NodeView};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    process::Command,
    thread::sleep,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(20);
/// Several times the 0.72 s that the shipped interval makes, for machines that have more to do.
const MOVED: Duration = Duration::from_secs(4);
/// What a planned move may take: the other node is told at once.
const PLANNED: Duration = Duration::from_secs(2);

/// What is every backend's server.
fn server() -> Result<PathBuf> {
    require::built("chaos")
}

fn can_run() -> bool {
    require::network() && require::command("keepalived", "keepalived")
}

/// A pair that announces both VIPs at both nodes.
fn pair(test: impl FnOnce(&mut Pair) -> Result<()>) {
    if !can_run() {
        return;
    }
    let mut pair = match Pair::set_up(Session::unique(), &server().expect("it is built"), "l2") {
        Ok(pair) => pair,
        Err(error) => panic!("cannot set the pair up: {error:?}"),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&mut pair)));
    if !matches!(outcome, Ok(Ok(()))) {
        eprintln!("{}", pair.words());
    }
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}"),
        Err(panic) => resume_unwind(panic),
    }
}

fn plays(mode: &str, connections: u64) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let figures = perform(Session::unique(), &server()?, mode, connections)?;
    println!("{mode}:");
    for (name, value) in figures.named() {
        println!("  {name} {value:.1}");
    }
    assert_eq!(figures.broken, 0);
    assert!(figures.bytes > 10_000, "{figures:?}");
    assert!(figures.failover < MOVED, "{figures:?}");
    assert!(figures.come_back < PLANNED, "{figures:?}");
    assert!(figures.drain < PLANNED, "{figures:?}");
    Ok(())
}

#[test]
fn connections_survive_every_move_in_mode_l2() -> Result<()> {
    plays("l2", 150)
}

#[test]
fn connections_survive_every_move_in_mode_ipip() -> Result<()> {
    plays("ipip", 100)
}

#[test]
fn a_vip_stays_when_lbd_dies_and_moves_when_nobody_balances() {
    pair(|pair| {
        let (holder, other) = (pair.holder()?, 1 - pair.holder()?);
        let mut command = pair.namespace(holder).command(require::built("lbd")?);
        command
            .arg("watchdog")
            .arg("--config")
            .arg(pair.sides[holder].node.config());
        let log = pair.sides[holder]
            .keepalived
            .track()
            .join("../watchdog.log");
        let watchdog = Process::start("lbd watchdog", command, &log)?;
        pair.sides[holder].node.kill()?;
        sleep(Duration::from_secs(2));
        pair.wait_holder(holder)?;
        pair.ask_v6().context("while lbd is dead")?;

        for entry in fs::read_dir(pair.sides[holder].node.pins())?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("link-") {
                fs::remove_file(entry.path())?;
            }
        }
        pair.wait_holder(other).with_context(|| watchdog.log())?;
        pair.ask_v6()?;
        assert!(watchdog.log().contains("VIPs are withdrawn"));

        // Nothing is left of what it has said: a new daemon says it all the same.
        let track = pair.sides[holder].keepalived.track();
        pair.sides[other].node.ok("node drain")?;
        pair.start_lbd(holder)?;
        pair.wait_announced(holder)?;
        pair.wait_holder(holder)?;
        fs::remove_file(track.join(format!("vip-{VIP_V4}")))?;
        pair.sides[holder].node.terminate()?;
        pair.start_lbd(holder)?;
        pair.wait_announced(holder)
    });
}

#[test]
fn a_keepalived_that_has_died_comes_back_without_the_vips() {
    pair(|pair| {
        let (holder, other) = (pair.holder()?, 1 - pair.holder()?);
        pair.sides[holder].keepalived.kill()?;
        wait_until("the other node to hold the VIP", LIMIT, || {
            Ok(holds(pair.namespace(other), VIP_V4.into())?.then_some(()))
        })?;
        // Its node has the addresses still, and forwards what it gets.
        assert!(holds(pair.namespace(holder), VIP_V4.into())?);
        pair.ask_v6()?;
        pair.start_keepalived(holder)?;
        pair.wait_holder(other)?;
        pair.ask_v6()
    });
}

#[test]
fn both_nodes_forward_and_only_the_holder_is_asked() {
    pair(|pair| {
        let (holder, other) = (pair.holder()?, 1 - pair.holder()?);
        let explain = |number: usize| {
            let packet = format!("explain tcp {CLIENT_V4}:40000 {VIP_V4}:80 --output json");
            let text = pair.sides[number].node.ok(&packet)?;
            let said: serde_json::Value = serde_json::from_str(&text)?;
            let (verdict, backend) = (
                said["verdict"]["name"].clone(),
                said["backend"]["name"].clone(),
            );
            Ok::<_, anyhow::Error>((verdict, backend))
        };
        let here = explain(holder)?;
        assert_eq!(here.0, "forwarded", "{here:?}");
        assert_eq!(explain(other)?, here);

        // The program answers pings itself, at the node that is asked.
        for side in &pair.sides {
            side.node.ok(&format!(
                "service add pinged --address {VIP_V4} --port 81 --mode l2 --echo"
            ))?;
        }
        let mut ping = pair.topology.client.command("ping");
        output(ping.args(["-c", "3", "-i", "0.2", &VIP_V4.to_string()]))?;
        let answered = |number: usize| -> Result<u64> {
            let stats = pair.sides[number].node.stats()?;
            let answers = stats.verdicts.iter().filter(|v| v.name == "answered_echo");
            Ok(answers.map(|verdict| verdict.packets).sum())
        };
        assert_eq!((answered(holder)?, answered(other)?), (3, 0));

        // A router that has missed the move still sends packets here.
        let mac = mac(pair, other)?;
        let router = &pair.topology.router;
        router.ip(&format!(
            "neighbour replace {VIP_V6} lladdr {mac} dev segment nud permanent"
        ))?;
        assert!(holds(pair.namespace(holder), VIP_V6.into())?);
        pair.ask_v6()
            .context("through the node that does not hold the VIP")
    });
}

fn mac(pair: &Pair, number: usize) -> Result<String> {
    let mut ip = pair.namespace(number).command("ip");
    let text = output(ip.args(["-json", "link", "show", "dev", "eth0"]))?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let mac = links.pointer("/0/address").and_then(|mac| mac.as_str());
    Ok(mac.context("no address")?.to_owned())
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    pair(|pair| {
        let (holder, other) = (pair.holder()?, 1 - pair.holder()?);
        let says = |pair: &Pair, address: &str, words: &str| -> Result<AnnouncementView> {
            let seen = || {
                let show = format!("--output json announce show {address}");
                // An lbd that has just started knows of no VIP yet.
                let Ok(said) = pair.sides[other].node.ok(&show) else {
                    return Ok(None);
                };
                let view: AnnouncementView = serde_json::from_str(&said)?;
                let text = format!("{} {}", view.reason, view.problem);
                Ok(text.contains(words).then_some(view))
            };
            wait_until(words, LIMIT, seen).with_context(|| pair.words())
        };
        let vip = VIP_V4.to_string();
        let track = pair.sides[other].keepalived.track();

        // One that nobody has told keepalived of, and one that may not be announced.
        for (name, address, words) in [
            (
                "unknown",
                "10.0.0.7",
                "names 10.0.0.7: add an instance for it",
            ),
            (
                "far",
                "10.9.9.9",
                "outside `announce.allow` in the node config",
            ),
            ("net", "10.0.0.64/26", "keepalived holds single addresses"),
        ] {
            let node = &pair.sides[other].node;
            node.ok(&format!(
                "service add {name} --address {address} --port 80 --mode l2"
            ))?;
            let backend = &pair.topology.backends[0];
            let add = format!(
                "backend add {} --service {name} --address {}",
                backend.name, backend.v4
            );
            node.ok(&add)?;
            says(pair, address, words)?;
            node.ok(&format!("service remove {name}"))?;
        }
        wait_until("all that was tried to be taken back", LIMIT, || {
            let node = &pair.sides[other].node;
            let view: NodeView = serde_json::from_str(&node.ok("--output json node show")?)?;
            Ok(view.problem.is_empty().then_some(()))
        })?;

        // keepalived is gone. It is told nothing, so that it does not come back with what is not so any more.
        pair.sides[other].keepalived.kill()?;
        restart(pair, other)?;
        says(pair, &vip, "keepalived does not run")?;
        says(pair, &vip, "systemctl start keepalived")?;
        pair.start_keepalived(other)?;
        let view = wait_until("it to be told", LIMIT, || {
            let view = says(pair, &vip, "weight is healthy")?;
            Ok(view.problem.is_empty().then_some(view))
        })?;
        assert_eq!(view.state, "announced");

        // Its files cannot be written.
        let moved = track.with_extension("away");
        fs::rename(&track, &moved)?;
        restart(pair, other)?;
        says(pair, &vip, "cannot be written: ")?;
        fs::rename(&moved, &track)?;
        wait_until("it to be told", LIMIT, || {
            let view = says(pair, &vip, "weight is healthy")?;
            Ok(view.problem.is_empty().then_some(()))
        })?;

        // The command is not there.
        let config = pair.sides[other].node.config();
        let text = fs::read_to_string(&config)?;
        fs::write(
            &config,
            text.replace(TRACK, "/nonexistent/keepalived-track"),
        )?;
        restart(pair, other)?;
        says(pair, &vip, "cannot be started: No such file or directory")?;
        says(pair, &vip, "see announce.exec.command")?;
        // All that time the other node held the VIPs.
        pair.wait_holder(holder)?;
        assert_eq!(tracked(&track, VIP_V6.into()), Some(100));
        Ok(())
    });
}

fn restart(pair: &mut Pair, number: usize) -> Result<()> {
    pair.sides[number].node.terminate()?;
    pair.start_lbd(number)
}

/// The command with no more than what the units leave to `lbd` and its watchdog.
#[test]
fn the_command_works_with_the_capabilities_of_the_units() {
    if !require::command("setpriv", "util-linux") {
        return;
    }
    pair(|pair| {
        for unit in ["lbd", "lbd-watchdog"] {
            let path = format!("{}/../deploy/{unit}.service", env!("CARGO_MANIFEST_DIR"));
            let text = fs::read_to_string(&path).context(path)?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
            let line = line.context("the unit leaves all capabilities")?;
            let kept = line.to_lowercase().replace("cap_", "+").replace(' ', ",");
            let directory = pair.sides[0].keepalived.track().join("..");
            let directory = directory.display();
            for (word, value) in [("withdraw", -254), ("announce", 100)] {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--bounding-set=-all,{kept}"))
                    .args(["--no-new-privs", TRACK])
                    .args(["--directory", &format!("{directory}/track")])
                    .args(["--config", &format!("{directory}/etc")])
                    .args(["--pid-file", &format!("{directory}/pid")])
                    .args([word, &format!("{VIP_V4}/32")]);
                let ended = finish(command)?;
                ensure!(ended.code == 0, "{unit}: {ended:?}");
                let track = pair.sides[0].keepalived.track();
                assert_eq!(tracked(&track, VIP_V4.into()), Some(value), "{unit}");
            }
        }
        Ok(())
    });
}
