//! VIPs announced by BGP with ExaBGP and with GoBGP, as `deploy/` ships them, to a router with BIRD: they come and go with
//! health, node drain, the data plane and the speaker, and stay when only `lbd` dies.

use anyhow::{Context, Result};
use lb_tests::{
    bird::{self, Bird},
    exabgp::{self, Exabgp},
    gobgp::{self, Gobgp},
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

/// What makes a node announce: short waits.
const ANNOUNCE: &str = "announce:
  allow: [10.0.0.0/24, \"fd00::/64\"]
  hold_down: 1s
  drain: { converge: 1s, linger: 1s }
";

/// Values of the balancer's files.
const BALANCER: [(&str, &str); 4] = [
    ("192.0.2.11", "10.2.0.2"),
    ("2001:db8:0:1::11", "fd00:2::2"),
    ("192.0.2.1", "10.2.0.1"),
    ("2001:db8:0:1::1", "fd00:2::1"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exabgp,
    Gobgp,
}

enum Speaker {
    Exabgp(Exabgp),
    Gobgp(Gobgp),
}

impl Speaker {
    fn start(kind: Kind, scenario: &Scenario) -> Result<Self> {
        let (namespace, directory) = (&scenario.topology.balancer, scenario.directory());
        Ok(match kind {
            Kind::Exabgp => {
                Self::Exabgp(Exabgp::start(namespace, &directory, "exabgp", &BALANCER)?)
            }
            Kind::Gobgp => Self::Gobgp(Gobgp::start(namespace, &directory, "gobgp", &BALANCER)?),
        })
    }

    fn process(&self) -> &Process {
        match self {
            Self::Exabgp(exabgp) => exabgp.process(),
            Self::Gobgp(gobgp) => gobgp.process(),
        }
    }

    fn kill(self) -> Result<()> {
        match self {
            Self::Exabgp(exabgp) => exabgp.kill(),
            Self::Gobgp(gobgp) => gobgp.kill(),
        }
    }
}

/// The network with BIRD on the router, and the changes of the router's routes as they happen.
struct Site {
    router: Bird,
    monitor: Process,
}

impl Site {
    /// Takes the static routes to the VIPs away: BGP is to bring them.
    fn set_up(scenario: &Scenario, kind: Kind) -> Result<Self> {
        let directory = scenario.directory();
        let router = &scenario.topology.router;
        router.ip(&format!("route del {VIP_V4}/32"))?;
        router.ip(&format!("-6 route del {VIP_V6}/128"))?;
        let settings = match kind {
            Kind::Exabgp => exabgp::settings(&directory, "exabgp"),
            Kind::Gobgp => gobgp::SETTINGS.into(),
        };
        let text = scenario.node.configuration("auto") + ANNOUNCE + &settings;
        fs::write(scenario.node.config(), text)?;
        let values = [
            ("THIS_ROUTER", "10.2.0.1"),
            ("BALANCERS_V4", "10.2.0.0/24"),
            ("BALANCERS_V6", "fd00:2::/64"),
            ("VIPS_V4", "[ 10.0.0.0/24{24,32} ]"),
            ("VIPS_V6", "[ fd00::/64{48,128} ]"),
        ];
        // A router that sends what balancers are not to take.
        let talkative = bird::ROUTER
            .replace("export none; }", "export where source = RTS_STATIC; }")
            + "protocol static { ipv4; route 10.0.0.0/8 blackhole; }\n";
        let bird = Bird::start(router, &directory, "bird-router", &talkative, &values)?;
        let mut monitor = router.command("ip");
        monitor.args(["-ts", "monitor", "route"]);
        let monitor = Process::start("ip monitor", monitor, &directory.join("routes.log"))?;
        Ok(Self {
            router: bird,
            monitor,
        })
    }

    /// Times at which the router lost its route to the VIP, in seconds of the day.
    fn losses(&self) -> Vec<f64> {
        let log = self.monitor.log();
        let lost = log
            .lines()
            .filter(|line| line.contains(&format!("Deleted {VIP_V4} ")));
        lost.filter_map(seconds_of_day).collect()
    }
}

/// The time of day in `2026-01-02T03:04:05.678` somewhere in a line.
fn seconds_of_day(line: &str) -> Option<f64> {
    let (_, time) = line.split_once('T')?;
    let end = time.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.')?;
    let mut parts = time[..end].split(':').map(str::parse::<f64>);
    parts.try_fold(0.0, |sum, part| Some(sum * 60.0 + part.ok()?))
}

fn routes(namespace: &Namespace, arguments: &str) -> Result<String> {
    let mut command = namespace.command("ip");
    command.args(arguments.split_whitespace());
    output(&mut command)
}

/// Waits until the router has a route to the VIP by the balancer, or has none.
fn wait_route(scenario: &Scenario, there: bool) -> Result<()> {
    let seen = || {
        let text = routes(
            &scenario.topology.router,
            &format!("route show {VIP_V4}/32"),
        )?;
        Ok((text.contains("via 10.2.0.2") == there).then_some(()))
    };
    wait_until(
        &format!("the router to have the route: {there}"),
        LIMIT,
        seen,
    )
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

fn wait_warning(scenario: &Scenario, words: &str) -> Result<()> {
    wait_until(&format!("a warning of `{words}`"), LIMIT, || {
        let warnings = scenario.node.status()?.warnings;
        Ok(warnings
            .iter()
            .any(|warning| warning.contains(words))
            .then_some(()))
    })
}

fn serves(scenario: &Scenario) {
    assert_eq!(failures(&scenario.requests(WEB, 50)), [].into());
}

/// All of it with one speaker, in one network: most of the time goes into setting up.
fn a_whole_life(kind: Kind, absent: &str) {
    let program = match kind {
        Kind::Exabgp => ("exabgp", "exabgp"),
        Kind::Gobgp => ("gobgpd", "gobgpd"),
    };
    if !require::command(program.0, program.1) || !require::command("bird", "bird2") {
        return;
    }
    scenario(Layout::Routed, "auto", |scenario| {
        let site = Site::set_up(scenario, kind)?;
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        wait_warning(scenario, absent)?;
        let speaker = Speaker::start(kind, scenario)?;
        wait_route(scenario, true)?;
        serves(scenario);
        goes_and_returns_with_health(scenario, &site)?;
        is_drained(scenario, &site)?;
        stays_when_lbd_dies(scenario, &site)?;
        let speaker = comes_back_with_its_speaker(scenario, kind, speaker)?;
        match &speaker {
            Speaker::Exabgp(exabgp) => survives_its_process(scenario, &site, exabgp)?,
            Speaker::Gobgp(_) => is_put_back_and_alone(scenario)?,
        }
        hangs_and_goes_on(scenario, &speaker)?;
        is_withdrawn_by_the_watchdog(scenario, &site)
    });
}

fn goes_and_returns_with_health(scenario: &mut Scenario, site: &Site) -> Result<()> {
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
        .and_then(seconds_of_day)
        .context("no verdict in the log")?;
    let gone = *site.losses().last().context("no loss was seen")?;
    println!(
        "verdict to route gone at the router: {:.1} ms",
        (gone - verdict) * 1_000.0
    );
    assert!(gone - verdict < WITHDRAWN.as_secs_f64(), "{verdict} {gone}");
    // The driver's word comes a moment after its deed.
    wait_until("lbd to know that it is withdrawn", LIMIT, || {
        Ok((announcement(scenario, "10.0.0.1")?.state == "withdrawn").then_some(()))
    })?;
    for number in 1..=3 {
        scenario.start_web(number)?;
    }
    wait_route(scenario, true)?;
    serves(scenario);
    Ok(())
}

fn is_drained(scenario: &mut Scenario, site: &Site) -> Result<()> {
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
    wait_until("the route to the IPv6 VIP", LIMIT, has_v6)
        .with_context(|| scenario.node.ok("announce list").unwrap_or_default())?;
    let before = site.losses().len();

    scenario.node.ok("node drain")?;
    for address in ["10.0.0.1/32", "fd00::1/128"] {
        let text = wait_until("GRACEFUL_SHUTDOWN at the router", LIMIT, || {
            let text = site.router.ask(&format!("show route all for {address}"))?;
            Ok(text.contains("(65535,0)").then_some(text))
        })?;
        assert!(text.contains("BGP.local_pref: 0"), "{text}");
        assert!(text.contains("BGP.med: 1000"), "{text}");
    }
    serves(scenario);
    assert_eq!(
        site.losses().len(),
        before,
        "while it is announced as draining"
    );
    let said = scenario.node.ok("node drain --wait --timeout 9s")?;
    assert!(said.starts_with("safe: safe to stop"), "{said}");
    wait_route(scenario, false)?;
    scenario.node.ok("node undrain")?;
    wait_route(scenario, true)?;
    let node: NodeView = serde_json::from_str(&scenario.node.ok("--output json node show")?)?;
    assert_eq!(node.state, "serving", "{node:?}");
    serves(scenario);
    Ok(())
}

fn stays_when_lbd_dies(scenario: &mut Scenario, site: &Site) -> Result<()> {
    let before = site.losses().len();
    scenario.node.kill()?;
    sleep(Duration::from_secs(2));
    serves(scenario);
    scenario.start_lbd()?;
    wait_decided(scenario)?;
    scenario.node.terminate()?;
    serves(scenario);
    scenario.start_lbd()?;
    wait_decided(scenario)?;
    assert_eq!(site.losses().len(), before, "while lbd came and went");
    Ok(())
}

/// With ExaBGP also while `lbd` is dead.
fn comes_back_with_its_speaker(
    scenario: &mut Scenario,
    kind: Kind,
    speaker: Speaker,
) -> Result<Speaker> {
    if kind == Kind::Exabgp {
        scenario.node.kill()?;
    }
    speaker.kill()?;
    wait_route(scenario, false)?;
    let speaker = Speaker::start(kind, scenario)?;
    wait_route(scenario, true)?;
    serves(scenario);
    if kind == Kind::Exabgp {
        scenario.start_lbd()?;
        wait_decided(scenario)?;
    }
    Ok(speaker)
}

/// ExaBGP starts `lbd exabgp` again when that dies, and keeps its routes meanwhile.
fn survives_its_process(scenario: &Scenario, site: &Site, exabgp: &Exabgp) -> Result<()> {
    let before = site.losses().len();
    let parent = format!("/proc/{0}/task/{0}/children", exabgp.process().pid());
    let child = fs::read_to_string(&parent)?;
    let pid = nix::unistd::Pid::from_raw(child.trim().parse().with_context(|| child.clone())?);
    nix::sys::signal::kill(pid, Signal::SIGKILL)?;
    wait_until("ExaBGP to start another process", LIMIT, || {
        let now = fs::read_to_string(&parent)?;
        Ok((now != child && !now.trim().is_empty()).then_some(()))
    })?;
    scenario.node.ok("node drain")?;
    wait_until("the drain at the router", LIMIT, || {
        let text = site.router.ask("show route all for 10.0.0.1/32")?;
        Ok(text.contains("(65535,0)").then_some(()))
    })?;
    assert_eq!(
        site.losses().len(),
        before,
        "while the process was started again"
    );
    scenario.node.ok("node undrain")?;
    wait_route(scenario, true)
}

/// What somebody takes away is put back, and what is another's is left alone.
fn is_put_back_and_alone(scenario: &Scenario) -> Result<()> {
    let balancer = &scenario.topology.balancer;
    wait_until("what the router sends", LIMIT, || {
        let sent = gobgp::ask(balancer, "neighbor 10.2.0.1 adj-in")?;
        Ok(sent.contains("10.0.0.0/8").then_some(()))
    })?;
    let table = gobgp::ask(balancer, "global rib")?;
    assert!(!table.contains("10.0.0.0/8"), "{table}");
    gobgp::ask(balancer, "global rib add 10.0.0.77/32")?;
    gobgp::ask(balancer, "global rib add 10.0.0.1/32 med 4000000000")?;
    gobgp::ask(balancer, "global rib add 10.0.0.78/32 identifier 179")?;
    gobgp::ask(balancer, "global rib del 10.0.0.1/32 identifier 179")?;
    wait_until("lbd to put it right", Duration::from_secs(5), || {
        let table = gobgp::ask(balancer, "global rib")?;
        let paths = table
            .lines()
            .filter(|line| line.contains("10.0.0.1/32"))
            .count();
        Ok(
            (paths == 2 && table.contains("10.0.0.77/32") && !table.contains("10.0.0.78/32"))
                .then_some(()),
        )
    })
    .with_context(|| gobgp::ask(balancer, "global rib").unwrap_or_default())?;
    gobgp::ask(balancer, "global rib del 10.0.0.77/32")?;
    gobgp::ask(balancer, "global rib del 10.0.0.1/32")?;
    Ok(())
}

/// A speaker that is frozen is named, and what was wanted meanwhile is done when it thaws. `lbd` answers all the while.
fn hangs_and_goes_on(scenario: &mut Scenario, speaker: &Speaker) -> Result<()> {
    speaker.process().signal(Signal::SIGSTOP)?;
    for number in 1..=3 {
        scenario.kill_web(number)?;
    }
    wait_warning(scenario, "not answered")?;
    speaker.process().signal(Signal::SIGCONT)?;
    wait_route(scenario, false)?;
    wait_until("lbd to know that it is withdrawn", LIMIT, || {
        let view = announcement(scenario, "10.0.0.1")?;
        Ok((view.state == "withdrawn" && view.problem.is_empty()).then_some(()))
    })?;
    for number in 1..=3 {
        scenario.start_web(number)?;
    }
    wait_route(scenario, true)
}

fn is_withdrawn_by_the_watchdog(scenario: &mut Scenario, site: &Site) -> Result<()> {
    let mut watchdog = scenario.topology.balancer.command(require::built("lbd")?);
    watchdog
        .arg("watchdog")
        .arg("--config")
        .arg(scenario.node.config());
    let log = scenario.directory().join("watchdog.log");
    let watchdog = Process::start("lbd watchdog", watchdog, &log)?;
    let before = site.losses().len();
    scenario.node.kill()?;
    sleep(Duration::from_secs(2));
    serves(scenario);
    assert_eq!(
        site.losses().len(),
        before,
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
    let said = "the data plane is sick: VIPs are withdrawn";
    wait_until("the watchdog's word", LIMIT, || {
        Ok(watchdog.log().contains(said).then_some(()))
    })?;
    scenario.start_lbd()?;
    wait_route(scenario, true)?;
    serves(scenario);
    Ok(())
}

#[test]
fn exabgp_announces_what_the_node_serves() {
    a_whole_life(Kind::Exabgp, "`lbd exabgp` does not answer on");
}

#[test]
fn gobgp_announces_what_the_node_serves() {
    a_whole_life(Kind::Gobgp, "gobgpd does not answer on 127.0.0.1:50051");
}
