//! Every block of docs/recipes.md, run as it is written, with requests under way: none may fail, and the shares must be
//! what the document says.

use anyhow::{Context, Result, ensure};
use lb_tests::{
    recipe::{Recipe, sections},
    require,
    scenario::{Scenario, WEB, scenario_of},
    topology::Layout,
    traffic::{Sample, Traffic, answers, failures},
    wait::wait_until,
};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Longest wait for a step.
const LIMIT: Duration = Duration::from_secs(20);
/// Requests under way at once.
const WORKERS: usize = 4;
/// Slots of a service.
const SLOTS: f64 = 65_537.0;

fn document() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/recipes.md");
    std::fs::read_to_string(path).with_context(|| path)
}

/// Runs a recipe in a network with four backends.
fn recipe(heading: &str, test: impl FnOnce(&mut Scenario, &mut Recipe) -> Result<()>) {
    if !require::network() || !require::command("jq", "jq") {
        return;
    }
    scenario_of(4, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        let directory = scenario.directory().join("recipe");
        let mut recipe = Recipe::new(&document()?, heading, &scenario.node, directory)?;
        test(scenario, &mut recipe)?;
        recipe.finish()
    });
}

#[test]
fn every_recipe_has_a_test() -> Result<()> {
    let headings: Vec<_> = sections(&document()?)?.into_keys().collect();
    assert_eq!(
        headings,
        [
            "Blue-green",
            "Canary at 5 %",
            "Taking a host down for maintenance"
        ]
    );
    Ok(())
}

#[test]
fn pools_are_swapped_and_swapped_back_without_a_failed_request() {
    recipe("Blue-green", |scenario, recipe| {
        const BLUE: [&str; 2] = ["backend-1", "backend-2"];
        const GREEN: [&str; 2] = ["backend-3", "backend-4"];
        recipe.step(LIMIT)?;
        scenario.node.wait_active(&["blue-1", "blue-2"])?;
        let traffic = start(scenario);
        let kept = Kept::open_at(scenario, "backend-1")?;
        only(scenario, &traffic, &BLUE)?;

        let revision = scenario.node.status()?.revision;
        let plan = recipe.step(LIMIT)?;
        assert!(plan.contains("green-1"), "{plan}");
        assert_eq!(
            scenario.node.status()?.revision,
            revision,
            "--dry-run changed something"
        );
        only(scenario, &traffic, &BLUE)?;

        recipe.step(LIMIT)?;
        scenario.node.wait_active(&["green-1", "green-2"])?;
        only(scenario, &traffic, &GREEN)?;
        let stale = scenario.node.lbctl(&format!(
            "apply -f {}/recipe/blue.yaml --if-revision {revision}",
            scenario.directory().display()
        ))?;
        assert_eq!(stale.code, 1, "{stale:?}");
        let before = kept.answers();

        let history = recipe.step(LIMIT)?;
        assert!(history.contains(&revision.to_string()), "{history}");
        scenario.node.wait_active(&["blue-1", "blue-2"])?;
        only(scenario, &traffic, &BLUE)?;
        assert!(before > 0 && kept.answers() > before);
        kept.close()?;
        none_failed(&traffic.stop())
    });
}

#[test]
fn a_canary_gets_its_share_and_goes_again() {
    recipe("Canary at 5 %", |scenario, recipe| {
        const FLOWS: usize = 3_000;
        let share = || -> Result<f64> {
            let samples = scenario.requests(WEB, FLOWS);
            none_failed(&samples)?;
            let answers = answers(&samples);
            let canary = answers.get("backend-3").copied().unwrap_or_default();
            Ok(100.0 * canary as f64 / samples.len() as f64)
        };
        let slots = || -> Result<f64> {
            Ok(100.0 * f64::from(scenario.node.backend("canary")?.slots) / SLOTS)
        };
        recipe.step(LIMIT)?;
        scenario.node.wait_active(&["stable-1", "stable-2"])?;
        let traffic = start(scenario);

        recipe.step(LIMIT)?;
        let all = ["canary", "stable-1", "stable-2"];
        wait_active(scenario, &all)?;
        let exact = slots()?;
        assert!((exact - 5.0).abs() < 0.01, "{exact} % of the slots");
        let measured = share()?;
        println!("canary: {exact:.3} % of the slots, {measured:.2} % of {FLOWS} flows");
        assert!((measured - 5.0).abs() < 1.5, "{measured} % of the flows");

        let list = recipe.step(LIMIT)?;
        assert!(all.iter().all(|name| list.contains(name)), "{list}");

        recipe.step(LIMIT)?;
        wait_until("a third of the slots", LIMIT, || {
            Ok(((slots()? - 100.0 / 3.0).abs() < 0.01).then_some(()))
        })?;

        recipe.step(LIMIT)?;
        wait_active(scenario, &["stable-1", "stable-2"])?;
        assert_eq!(share()?, 0.0);
        none_failed(&traffic.stop())
    });
}

#[test]
fn a_host_is_drained_stopped_and_taken_back_without_a_failed_request() {
    recipe("Taking a host down for maintenance", |scenario, recipe| {
        recipe.step(LIMIT)?;
        wait_active(scenario, &["web-1", "web-2", "web-3"])?;
        let traffic = start(scenario);
        let kept = Kept::open_at(scenario, "backend-2")?;

        let plan = recipe.step(LIMIT)?;
        assert!(plan.contains("web-2"), "{plan}");
        wait_active(scenario, &["web-1", "web-2", "web-3"])?;

        let mut drain = recipe.start()?;
        wait_active(scenario, &["web-1", "web-3"])?;
        only(scenario, &traffic, &["backend-1", "backend-3"])?;
        thread::sleep(Duration::from_secs(3));
        assert!(drain.runs()?, "web-2 still has a connection");
        let answers = kept.close()?;
        assert!(answers > 5, "{answers} answers over the connection");
        let said = drain.end(Duration::from_secs(60))?;
        println!("{said}");

        let drains = recipe.step(LIMIT)?;
        assert!(drains.contains("web-2"), "{drains}");
        scenario.kill_web(2)?;
        thread::sleep(Duration::from_secs(1));
        scenario.start_web(2)?;

        recipe.step(LIMIT)?;
        wait_active(scenario, &["web-1", "web-2", "web-3"])?;
        only(scenario, &traffic, &["backend-1", "backend-2", "backend-3"])?;
        none_failed(&traffic.stop())
    });
}

fn start(scenario: &Scenario) -> Traffic {
    let pause = Duration::from_millis(5);
    Traffic::start(&scenario.topology.client, WEB, WORKERS, pause)
}

fn none_failed(samples: &[Sample]) -> Result<()> {
    let failed = failures(samples);
    ensure!(
        failed.is_empty(),
        "of {} requests failed: {failed:?}",
        samples.len()
    );
    Ok(())
}

/// Waits until exactly these get traffic, in whatever order they are listed.
fn wait_active(scenario: &Scenario, names: &[&str]) -> Result<()> {
    wait_until(&format!("traffic to {names:?}"), LIMIT, || {
        let backends = scenario.node.backends()?;
        let active: BTreeSet<_> = backends
            .iter()
            .filter(|backend| backend.active)
            .map(|backend| backend.name.as_str())
            .collect();
        Ok(active.iter().eq(names).then_some(()))
    })
}

/// Requests from now on are answered by all of these servers and no other.
fn only(scenario: &Scenario, traffic: &Traffic, servers: &[&str]) -> Result<()> {
    let now = Instant::now();
    let samples = wait_until("two hundred requests", LIMIT, || {
        let samples = traffic.samples();
        let since: Vec<_> = samples.into_iter().filter(|s| s.sent > now).collect();
        Ok((since.len() > 200).then_some(since))
    })
    .with_context(|| scenario.node.ok("backend list").unwrap_or_default())?;
    let answers = answers(&samples);
    ensure!(
        answers.keys().eq(servers),
        "answers of {answers:?}, not of {servers:?}"
    );
    none_failed(&samples)
}

/// A connection that is kept open and used all the time.
struct Kept {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    worker: thread::JoinHandle<Result<()>>,
}

impl Kept {
    /// Opens connections until one is at `server`.
    fn open_at(scenario: &Scenario, server: &str) -> Result<Self> {
        let client = &scenario.topology.client;
        let found = (0..100).find_map(|_| {
            let stream = client.run(|| -> Result<TcpStream> {
                let stream = TcpStream::connect_timeout(&WEB, Duration::from_secs(2))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                Ok(stream)
            });
            let mut stream = match stream {
                Ok(stream) => stream,
                Err(error) => return Some(Err(error)),
            };
            match ask(&mut stream) {
                Ok(name) if name == server => Some(Ok(stream)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        });
        let mut stream = found.with_context(|| format!("no connection to {server} of 100"))??;
        let (stop, answers) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let worker = thread::spawn({
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            let server = server.to_owned();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let name = ask(&mut stream).context("the kept connection broke")?;
                    ensure!(name == server, "{name} answers in place of {server}");
                    answers.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(200));
                }
                Ok(())
            }
        });
        Ok(Self {
            stop,
            answers,
            worker,
        })
    }

    fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Closes it; the answers that it got.
    fn close(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        match self.worker.join() {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(self.answers.load(Ordering::Relaxed))
    }
}

/// Asks the web server at the other end who it is, and leaves the connection open.
fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 1_024];
    // The body is one line, the last of the answer; heads end with an empty one.
    let body = loop {
        let length = stream.read(&mut piece)?;
        ensure!(length > 0, "closed by the server");
        answer.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && body.ends_with('\n')
        {
            break body.to_owned();
        }
    };
    let name = body.split_whitespace().next();
    Ok(name.context("an empty answer")?.to_owned())
}
