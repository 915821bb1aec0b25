//! VIPs announced by BGP with BIRD on both sides, as `deploy/` ships it: they come and go with health, node drain and the data
//! plane, and stay when only `lbd` dies.

use anyhow::{Context, Result};
use lb_tests::{
    bird::{self, Bird},
    moment,
    netns::Namespace,
    process::{Process, output},
    require,
    scenario::{FAST_PROBES, Scenario, WEB, scenario},
    topology::{Layout, VIP_V4, VIP_V6},
    traffic::failures,
    wait::wait_until,
};
use lb_userspace::api::announce::{AnnouncementView, NodeView};
use nix::sys::signal::Signal;
use std::{fs, thread::sleep, time::Duration};

const LIMIT: Duration = Duration::from_secs(20);
/// More than the worst of what is seen on a machine that has nothing else to do, for those that have.
const WITHDRAWN: Duration = Duration::from_millis(500);

/// Milliseconds between two BFD packets. These tests run beside each other, and none is about a speaker that cannot run for a
/// while.
const PATIENT: &str = "500";

/// What makes a node announce: short waits.
const ANNOUNCE: &str = "announce:
  allow: [10.0.0.0/24, \"fd00::/64\"]
  hold_down: 1s
  drain: { converge: 1s, linger: 1s }
";

/// The network with a BGP speaker on each side, and the changes of the router's routes as they happen.
struct Site {
    router: Bird,
    balancer: Option<Bird>,
    monitor: Process,
}

impl Site {
    /// Takes the static routes to the VIPs away: BGP is to bring them.
    fn set_up(scenario: &Scenario) -> Result<Self> {
        let directory = scenario.directory();
        let topology = &scenario.topology;
        topology.forget_vips()?;
        let text = scenario.node.configuration("auto") + ANNOUNCE;
        fs::write(scenario.node.config(), text)?;
        let values = [
            ("THIS_ROUTER", "10.2.0.1"),
            ("BALANCERS_V4", "10.2.0.0/24"),
            ("BALANCERS_V6", "fd00:2::/64"),
            ("VIPS_V4", "[ 10.0.0.0/24{24,32} ]"),
            ("VIPS_V6", "[ fd00::/64{48,128} ]"),
            ("BFD_INTERVAL", PATIENT),
        ];
        let router = Bird::start(
            &topology.router,
            &directory,
            "bird-router",
            bird::ROUTER,
            &values,
        )?;
        let mut monitor = topology.router.command("ip");
        monitor.args(["-ts", "monitor", "route"]);
        let monitor = Process::start("ip monitor", monitor, &directory.join("routes.log"))?;
        let mut site = Self {
            router,
            balancer: None,
            monitor,
        };
        site.start_speaker(scenario)?;
        Ok(site)
    }

    fn start_speaker(&mut self, scenario: &Scenario) -> Result<()> {
        let values = [
            ("THIS_NODE", "10.2.0.2"),
            ("ROUTER_V4", "10.2.0.1"),
            ("ROUTER_V6", "fd00:2::1"),
            ("BFD_INTERVAL", PATIENT),
        ];
        let namespace = &scenario.topology.balancer;
        let directory = scenario.directory();
        self.balancer = Some(Bird::start(
            namespace,
            &directory,
            "bird-lb",
            bird::BALANCER,
            &values,
        )?);
        Ok(())
    }

    /// Times at which the router lost its route to the VIP, in seconds of the day.
    fn losses(&self) -> Vec<f64> {
        let log = self.monitor.log();
        let lost = log
            .lines()
            .filter(|line| line.contains(&format!("Deleted {VIP_V4} ")));
        lost.filter_map(moment::in_line).collect()
    }
}

fn routes(namespace: &Namespace, arguments: &str) -> Result<String> {
    let mut command = namespace.command("ip");
    command.args(arguments.split_whitespace());
    output(&mut command)
}

/// Waits until the router has a route to the VIP by the balancer, or has none.
fn wait_route(scenario: &Scenario, there: bool) -> Result<()> {
    let what = if there {
        "the router to have the route"
    } else {
        "the router to lose the route"
    };
    let seen = || {
        let text = routes(
            &scenario.topology.router,
            &format!("route show {VIP_V4}/32"),
        )?;
        Ok((text.contains("via 10.2.0.2") == there).then_some(()))
    };
    wait_until(what, LIMIT, seen)
        .with_context(|| scenario.node.ok("announce list").unwrap_or_default())
}

fn announcement(scenario: &Scenario, address: &str) -> Result<AnnouncementView> {
    let text = scenario
        .node
        .ok(&format!("--output json announce show {address}"))?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits until a new `lbd` has decided about the VIP.
fn wait_decided(scenario: &Scenario) -> Result<()> {
    wait_until("lbd to decide", LIMIT, || {
        // Before that the list is empty, or says what was found.
        let text = scenario.node.ok("--output json announce list")?;
        let views: Vec<AnnouncementView> = serde_json::from_str(&text)?;
        let mut ours = views.iter().filter(|view| view.address == "10.0.0.1");
        Ok(ours.any(|view| view.wanted == "announced").then_some(()))
    })
}

fn node(scenario: &Scenario) -> Result<NodeView> {
    Ok(serde_json::from_str(
        &scenario.node.ok("--output json node show")?,
    )?)
}

fn serves(scenario: &Scenario) {
    assert_eq!(failures(&scenario.requests(WEB, 50)), [].into());
}

/// A network in which the router has the route, and requests are answered.
fn announced(test: impl FnOnce(&mut Scenario, &mut Site) -> Result<()>) {
    if !require::command("bird", "bird2") {
        return;
    }
    scenario(Layout::Routed, "auto", |scenario| {
        let mut site = Site::set_up(scenario)?;
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        wait_route(scenario, true)?;
        serves(scenario);
        test(scenario, &mut site)
    });
}

#[test]
fn a_vip_is_announced_while_a_backend_is_healthy() {
    announced(|scenario, site| {
        let view = announcement(scenario, "10.0.0.1")?;
        assert_eq!(
            (view.state.as_str(), view.healthy_percent),
            ("announced", 100.0),
            "{view:?}"
        );
        for number in 1..=2 {
            scenario.kill_web(number)?;
        }
        scenario.node.wait_active(&["backend-3"])?;
        assert_eq!(announcement(scenario, "10.0.0.1")?.state, "announced");
        assert_eq!(site.losses(), [0.0; 0], "before the last backend is down");

        scenario.kill_web(3)?;
        wait_route(scenario, false)?;
        let log = scenario.node.log();
        let verdict = log.lines().rfind(|line| line.contains("backend is down"));
        let verdict = verdict
            .and_then(moment::in_line)
            .context("no verdict in the log")?;
        let gone = *site.losses().last().context("no loss was seen")?;
        println!(
            "verdict to route gone at the router: {:.1} ms",
            (gone - verdict) * 1_000.0
        );
        assert!(gone - verdict < WITHDRAWN.as_secs_f64(), "{verdict} {gone}");
        // The driver's word comes a moment after its deed.
        let view = wait_until("lbd to know that it is withdrawn", LIMIT, || {
            let view = announcement(scenario, "10.0.0.1")?;
            Ok((view.state == "withdrawn").then_some(view))
        })?;
        assert_eq!(view.reason, "0 of 300 weight is healthy");
        let status = scenario.node.status()?;
        let warned = |warning: &String| warning.contains("10.0.0.1 (www) is not announced");
        assert!(status.warnings.iter().any(warned), "{status:?}");

        scenario.start_web(1)?;
        wait_route(scenario, true)?;
        serves(scenario);
        Ok(())
    });
}

#[test]
fn a_node_is_drained_and_stays_so_until_it_is_undrained() {
    announced(|scenario, site| {
        let v6 = format!("service add www6 --address {VIP_V6} --port 80 --mode ipip {FAST_PROBES}");
        scenario.node.ok(&v6)?;
        for backend in &scenario.topology.backends {
            let (name, address) = (&backend.name, backend.v6);
            scenario.node.ok(&format!(
                "backend add {name}-v6 --service www6 --address {address}"
            ))?;
        }
        let has_v6 = || {
            let text = routes(&scenario.topology.router, "-6 route show fd00::1")?;
            Ok(text.contains("proto bird").then_some(()))
        };
        wait_until("the route to the IPv6 VIP", LIMIT, has_v6)?;

        scenario.node.ok("node drain")?;
        let asks = |site: &Site| {
            let text = site.router.ask("show route all for 10.0.0.1/32")?;
            Ok(text.contains("(65535,0)").then_some(text))
        };
        let text = wait_until("GRACEFUL_SHUTDOWN at the router", LIMIT, || asks(site))?;
        assert!(text.contains("BGP.local_pref: 0"), "{text}");
        assert!(text.contains("BGP.as_path: 65001 65001 65001"), "{text}");
        assert_eq!(site.losses(), [0.0; 0], "while it is announced as draining");
        serves(scenario);
        let said = scenario.node.ok("node drain --wait --timeout 9s")?;
        assert!(said.starts_with("safe: safe to stop"), "{said}");
        wait_route(scenario, false)?;

        scenario.node.terminate()?;
        scenario.start_lbd()?;
        wait_until("the drain to go on", LIMIT, || {
            Ok((node(scenario)?.state == "safe").then_some(()))
        })?;
        wait_route(scenario, false)?;
        scenario.node.ok("node undrain")?;
        wait_route(scenario, true)?;
        serves(scenario);
        Ok(())
    });
}

#[test]
fn routes_stay_when_lbd_dies_and_come_back_when_somebody_takes_them() {
    announced(|scenario, site| {
        scenario.node.kill()?;
        sleep(Duration::from_secs(2));
        serves(scenario);
        scenario.start_lbd()?;
        wait_decided(scenario)?;
        scenario.node.terminate()?;
        serves(scenario);
        scenario.start_lbd()?;
        wait_decided(scenario)?;
        assert_eq!(site.losses(), [0.0; 0], "while lbd came and went");

        let balancer = &scenario.topology.balancer;
        balancer.ip("route add blackhole 10.0.0.77/32 table 179 proto static")?;
        balancer.ip("route add blackhole 10.0.0.78/32 table 179 proto 179 metric 100")?;
        balancer.ip("route del blackhole 10.0.0.1/32 table 179")?;
        let table = || routes(balancer, "route show table 179");
        wait_until("lbd to put the route back", Duration::from_secs(2), || {
            Ok(table()?.contains("blackhole 10.0.0.1 ").then_some(()))
        })?;
        let left = table()?;
        assert!(
            left.contains("10.0.0.77") && !left.contains("10.0.0.78"),
            "{left}"
        );

        scenario
            .node
            .ok("service add far --address 10.9.9.9 --port 80")?;
        let far = announcement(scenario, "10.9.9.9")?;
        assert!(far.reason.contains("outside `announce.allow`"), "{far:?}");
        assert_eq!(far.state, "withdrawn");

        site.balancer.take().context("no speaker")?.kill()?;
        wait_route(scenario, false)?;
        site.start_speaker(scenario)?;
        wait_route(scenario, true)?;
        serves(scenario);
        let detached = scenario
            .node
            .terminate()
            .and_then(|_| scenario.node.lbd(&scenario.topology.balancer, "detach"))?;
        assert_eq!(detached.code, 0, "{detached:?}");
        wait_route(scenario, false)
    });
}

#[test]
fn the_watchdog_withdraws_when_nobody_balances_and_not_before() {
    announced(|scenario, site| {
        let balancer = &scenario.topology.balancer;
        balancer.ip("link add spare type veth peer name spare-peer")?;
        balancer.ip("link set spare up")?;
        balancer.ip("link set spare-peer up")?;
        let config = scenario.node.config();
        let text = fs::read_to_string(&config)?;
        let two = text.replace("interfaces:\n", "interfaces:\n  - { name: spare }\n");
        fs::write(&config, two)?;
        scenario.node.signal(Signal::SIGHUP)?;
        wait_until("the program on the other interface", LIMIT, || {
            let link = routes(balancer, "link show dev spare")?;
            Ok(link.contains("xdp").then_some(()))
        })?;
        let mut watchdog = scenario.topology.balancer.command(require::built("lbd")?);
        watchdog
            .arg("watchdog")
            .arg("--config")
            .arg(scenario.node.config());
        let log = scenario.directory().join("watchdog.log");
        let watchdog = Process::start("lbd watchdog", watchdog, &log)?;
        wait_until("the watchdog", LIMIT, || {
            Ok(watchdog.log().contains("watching").then_some(()))
        })?;
        // The interface is given up: longer than the watchdog waits for lbd.
        fs::write(&config, text)?;
        scenario.node.signal(Signal::SIGHUP)?;
        sleep(Duration::from_secs(4));
        assert_eq!(site.losses(), [0.0; 0], "{}", watchdog.log());
        scenario.node.kill()?;
        sleep(Duration::from_secs(2));
        serves(scenario);
        assert_eq!(
            site.losses(),
            [0.0; 0],
            "while packets were balanced: {}",
            watchdog.log()
        );

        let links: Vec<_> = fs::read_dir(scenario.node.pins())?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("link-"))
            .collect();
        assert_eq!(links.len(), 1, "{links:?}");
        fs::remove_file(links[0].path())?;
        wait_route(scenario, false)?;
        assert!(
            watchdog
                .log()
                .contains("the data plane is sick: VIPs are withdrawn")
        );

        scenario.start_lbd()?;
        wait_route(scenario, true)?;
        serves(scenario);
        Ok(())
    });
}
