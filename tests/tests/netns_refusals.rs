//! What lbd and lbctl do with bad input: they name it and say what to do, and whatever ran goes on.

use anyhow::{Context, Result};
use lb_tests::{
    node::{Finished, Node, finish},
    process::output,
    require,
    scenario::{Scenario, WEB, scenario},
    session::Session,
    topology::Layout,
    traffic::failures,
    wait::wait_until,
};
use nix::sys::signal::Signal;
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(5);
const STATE_FILES: [&str; 2] = ["state.json", "state.copy.json"];

#[test]
fn a_bad_configuration_is_refused_with_line_field_and_value() {
    scenario(Layout::Routed, "auto", |scenario| {
        let good = scenario.node.configuration("auto");
        let check = |text: &str| -> Result<Finished> {
            fs::write(scenario.node.config(), text)?;
            let checked = scenario
                .node
                .lbd(&scenario.topology.balancer, "check-config")?;
            let started = scenario.node.lbd(&scenario.topology.balancer, "")?;
            assert_eq!(
                (started.code, &started.stderr),
                (checked.code, &checked.stderr),
                "lbd itself says the same"
            );
            Ok(checked)
        };
        for (bad, words) in [
            (
                scenario.node.configuration("turbo"),
                ["line 2", "turbo", "native"],
            ),
            (
                good.replace("hash_seed", "hash_sead"),
                ["line 7", "hash_sead", "hash_seed"],
            ),
            (
                good.replace("services: 64", "services: 0"),
                ["line 8", "limits.services", "choose 1 to"],
            ),
            (
                good.replace("127.0.0.1:9469", "localhost"),
                ["metrics.address", "localhost", "127.0.0.1:9469"],
            ),
        ] {
            let refused = check(&bad)?;
            assert_eq!(refused.code, 1, "{bad}");
            for word in words {
                assert!(
                    refused.stderr.contains(word),
                    "no {word} in: {}",
                    refused.stderr
                );
            }
        }
        fs::write(scenario.node.config(), good)?;
        assert_eq!(
            scenario
                .node
                .lbd(&scenario.topology.balancer, "check-config")?
                .code,
            0
        );
        Ok(())
    });
}

#[test]
fn an_unknown_interface_degrades_the_node_until_sighup_mends_it() {
    scenario(Layout::Routed, "auto", |scenario| {
        let good = scenario.node.configuration("auto");
        let both = good.replace(
            "interfaces:\n",
            "interfaces:\n  - { name: eth7, attach: auto }\n",
        );
        fs::write(scenario.node.config(), both)?;
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let status = scenario.node.status()?;
        assert_eq!(status.condition, "degraded");
        let unknown = status
            .interfaces
            .iter()
            .find(|interface| interface.name == "eth7")
            .context("no eth7")?;
        assert_eq!(
            (unknown.index, unknown.mode.as_str()),
            (0, "none"),
            "{unknown:?}"
        );
        assert!(
            unknown.note.contains("eth7") && unknown.note.contains("eth0"),
            "{unknown:?}"
        );
        assert_eq!(
            failures(&scenario.requests(WEB, 100)),
            [].into(),
            "eth0 does its work"
        );

        fs::write(scenario.node.config(), "interfaces: nonsense\n")?;
        scenario.node.signal(Signal::SIGHUP)?;
        logged(&scenario.node, "not reloaded")?;
        assert_eq!(
            failures(&scenario.requests(WEB, 100)),
            [].into(),
            "after a refused SIGHUP"
        );

        fs::write(scenario.node.config(), good)?;
        scenario.node.signal(Signal::SIGHUP)?;
        wait_until("the node to be well", LIMIT, || {
            Ok((scenario.node.status()?.condition == "ok").then_some(()))
        })?;
        assert_eq!(
            failures(&scenario.requests(WEB, 100)),
            [].into(),
            "after SIGHUP"
        );
        Ok(())
    });
}

fn logged(node: &Node, words: &str) -> Result<()> {
    wait_until(&format!("{words:?} in the log"), LIMIT, || {
        Ok(node.log().contains(words).then_some(()))
    })
}

#[test]
fn a_second_lbd_is_refused_whatever_it_shares() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let pid = scenario.node.pid()?.to_string();
        let same = scenario.node.lbd(&scenario.topology.balancer, "")?;
        assert_eq!(same.code, 1);
        assert!(
            same.stderr.contains("another lbd") && same.stderr.contains(&pid),
            "{}",
            same.stderr
        );

        let elsewhere = scenario.directory().join("second");
        let (state, socket) = (scenario.node.state_directory(), scenario.node.socket());
        let text = scenario.node.configuration("auto");
        let own_state = text.replace(
            &format!("{}\n", state.display()),
            &format!("{}\n", elsewhere.display()),
        );
        assert_ne!(own_state, text);
        fs::write(scenario.node.config(), &own_state)?;
        let same_socket = scenario.node.lbd(&scenario.topology.balancer, "")?;
        assert_eq!(same_socket.code, 1);
        assert!(
            same_socket
                .stderr
                .contains(&format!("another lbd answers on {}", socket.display())),
            "{}",
            same_socket.stderr
        );

        let own_socket = own_state
            .replace(
                &socket.display().to_string(),
                &elsewhere.join("lbd.sock").display().to_string(),
            )
            .replace("127.0.0.1:9469", "127.0.0.1:9470");
        assert_ne!(own_socket, own_state);
        fs::write(scenario.node.config(), own_socket)?;
        let same_pins = scenario.node.lbd(&scenario.topology.balancer, "")?;
        assert_eq!(same_pins.code, 1);
        assert!(
            same_pins
                .stderr
                .contains(&scenario.node.pins().display().to_string()),
            "{}",
            same_pins.stderr
        );

        let detach = scenario.node.lbd(&scenario.topology.balancer, "detach")?;
        assert_eq!(detach.code, 1, "detach under a running lbd: {detach:?}");
        assert!(socket.exists(), "the first one's socket is gone");
        assert_eq!(failures(&scenario.requests(WEB, 100)), [].into());
        Ok(())
    });
}

#[test]
fn a_state_file_cut_in_half_costs_nothing() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let state = scenario.node.ok("export")?;
        let [main, copy] = STATE_FILES.map(|name| scenario.node.state_directory().join(name));
        scenario.node.terminate()?;
        cut(&main)?;
        scenario.start_lbd()?;
        assert_eq!(
            scenario.node.ok("export")?,
            state,
            "recovered from the copy"
        );
        assert!(
            warned(scenario, "damaged")?,
            "{:?}",
            scenario.node.status()?
        );
        assert_eq!(failures(&scenario.requests(WEB, 100)), [].into());

        scenario.node.terminate()?;
        cut(&main)?;
        cut(&copy)?;
        scenario.start_lbd()?;
        assert!(
            warned(scenario, "damaged")?,
            "{:?}",
            scenario.node.status()?
        );
        assert_eq!(
            failures(&scenario.requests(WEB, 100)),
            [].into(),
            "without a state the data plane stays as it is"
        );

        let file = scenario.directory().join("exported.yaml");
        fs::write(&file, &state)?;
        scenario.node.ok(&format!("apply -f {}", file.display()))?;
        assert_eq!(scenario.node.ok("export")?, state);
        scenario
            .node
            .wait_active(&["backend-1", "backend-2", "backend-3"])?;
        assert_eq!(scenario.node.status()?.condition, "ok");
        assert_eq!(failures(&scenario.requests(WEB, 100)), [].into());
        Ok(())
    });
}

fn cut(path: &Path) -> Result<()> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(fs::write(path, &text[..text.len() / 2])?)
}

fn warned(scenario: &Scenario, word: &str) -> Result<bool> {
    Ok(scenario
        .node
        .status()?
        .warnings
        .iter()
        .any(|warning| warning.contains(word)))
}

#[test]
fn without_root_lbd_and_lbctl_say_what_they_need() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    // Anybody's: root's own directories may be closed to others, so the programs are copied out of them.
    const NOBODY: u32 = 65_534;
    let session = Session::unique();
    let node = Node::new(&session, "auto")?;
    let run = |program: &str, arguments: &[&str]| -> Result<Finished> {
        let copy = session.directory().join(format!("copy-of-{program}"));
        // By a process of its own: a file open for writing here would be inherited by what other tests start meanwhile,
        // and could not be executed until that has called exec.
        output(
            Command::new("install")
                .args(["-m", "755"])
                .arg(require::built(program)?)
                .arg(&copy),
        )?;
        let mut command = Command::new(copy);
        command
            .args(arguments)
            .current_dir("/")
            .gid(NOBODY)
            .uid(NOBODY);
        finish(command)
    };
    let config = node.config().display().to_string();
    let lbd = run("lbd", &["--config", &config])?;
    assert_eq!(lbd.code, 1);
    assert!(
        lbd.stderr.contains("root") && lbd.stderr.contains("CAP_"),
        "{}",
        lbd.stderr
    );

    // A socket that only root may use, as lbd makes it.
    let _listener = std::os::unix::net::UnixListener::bind(node.socket())?;
    fs::set_permissions(node.socket(), fs::Permissions::from_mode(0o600))?;
    let lbctl = run(
        "lbctl",
        &["--socket", &node.socket().display().to_string(), "status"],
    )?;
    assert_eq!(lbctl.code, 1);
    assert!(
        lbctl.stderr.contains("permission denied") && lbctl.stderr.contains("sudo"),
        "{}",
        lbctl.stderr
    );
    Ok(())
}

#[test]
fn lbctl_says_what_is_wrong_and_changes_nothing() {
    scenario(Layout::Routed, "auto", |scenario| {
        let before = scenario.node.lbctl("status")?;
        assert_eq!(before.code, 1, "no lbd runs");
        assert!(before.stderr.contains("--socket"), "{}", before.stderr);

        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        scenario
            .node
            .ok("service add other --address 10.0.0.9 --port 80")?;
        let state = scenario.node.ok("export")?;
        for (arguments, code, words) in [
            (
                "service add new --address 10.0.0.2 --port 70000",
                1,
                ["port", "70000"],
            ),
            (
                "service add www --address 10.0.0.2 --port 80",
                1,
                ["www", "exists"],
            ),
            (
                "service add twin --address 10.0.0.1 --port 80",
                1,
                ["www", "10.0.0.1 tcp/80"],
            ),
            (
                "service add new --address 10.0.0.300 --port 80",
                1,
                ["address", "10.0.0.300"],
            ),
            ("service remove wwww", 1, ["wwww", "www"]),
            (
                "backend set backend-1 --service other --weight 5",
                1,
                ["other", "www"],
            ),
            (
                "backend add backend-1 --service other --address 10.3.9.2",
                1,
                ["backend-1", "10.3.1.2"],
            ),
            ("backend set backend-1 --weight 1001", 1, ["weight", "1001"]),
            (
                "service add new --address 10.0.0.2 --port eighty",
                2,
                ["eighty", "--port"],
            ),
            ("servcie list", 2, ["servcie", "service"]),
            ("backend set backend-1", 2, ["--weight", "--address"]),
        ] {
            let refused = scenario.node.lbctl(arguments)?;
            assert_eq!(refused.code, code, "lbctl {arguments}: {refused:?}");
            assert_eq!(refused.stdout, "", "lbctl {arguments}");
            let once = code == 2 || refused.stderr.lines().count() == 1;
            assert!(once, "lbctl {arguments} says it again: {}", refused.stderr);
            for word in words {
                assert!(
                    refused.stderr.contains(word),
                    "lbctl {arguments}: no {word} in: {}",
                    refused.stderr
                );
            }
        }
        assert_eq!(scenario.node.ok("export")?, state);
        assert_eq!(failures(&scenario.requests(WEB, 100)), [].into());
        Ok(())
    });
}
