//! The demo: a small network on this machine, the real XDP program, `lbd` and `lbctl`, real requests; what happens is
//! shown and checked.
//!
//! **Invariant.** Whatever ends it (its end, a failure, Ctrl-C), nothing of it is left, unless `--keep` was given and
//! all went well. It exits with 0 only if everything was as it should be.

mod acts;
mod outage;
mod record;
mod screen;

use crate::{
    interrupt, require,
    scenario::{Scenario, WEB},
    session::Session,
    topology::Layout,
};
use anyhow::{Context, Result, bail};
use record::Record;
use std::{fs::File, process::ExitCode};

/// Backends of the demo.
const BACKENDS: u8 = 3;

/// Arguments of the demo.
#[derive(Debug, clap::Parser)]
#[command(
    name = "cargo xtask demo",
    about = "Shows Guideway balancing real traffic in network namespaces"
)]
pub struct Arguments {
    /// Leave everything running at the end, and say how to use it
    #[arg(long)]
    keep: bool,
    /// Take down what an earlier run with --keep left, and nothing else
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

/// Runs the demo and says how it went.
pub fn run(arguments: &Arguments) -> ExitCode {
    match perform(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn perform(arguments: &Arguments) -> Result<bool> {
    let missing = require::missing_for_network();
    if !missing.is_empty() {
        bail!("the demo needs {}", missing.join(", "));
    }
    let _only_one = lock()?;
    let earlier = session();
    let was_there = earlier.exists();
    drop(earlier);
    if arguments.down {
        screen::say(if was_there {
            "The demo is taken down."
        } else {
            "There is no demo to take down."
        });
        return Ok(true);
    }
    if was_there {
        screen::say("An earlier demo was still there; it has been taken down.");
    }
    interrupt::clean_up_on_signals(session)?;
    let (scenario, record) = play()?;
    let good = record.summary(&scenario)?;
    if arguments.keep && good {
        keep(scenario);
    }
    Ok(good)
}

fn session() -> Session {
    Session::named("demo")
}

/// Only one demo at a time: its names are fixed.
fn lock() -> Result<File> {
    let path = std::env::temp_dir().join("gw-demo.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.try_lock()
        .map_err(|_| anyhow::anyhow!("another demo is running ({} is locked)", path.display()))?;
    Ok(file)
}

fn play() -> Result<(Scenario, Record)> {
    let mut record = Record::default();
    let mut scenario = acts::network(session(), BACKENDS, Layout::Routed)?;
    acts::start_daemon(&mut scenario, &mut record)?;
    acts::add_service(&scenario)?;
    acts::balance(&scenario, &mut record);
    outage::lose_and_regain_backend(&mut scenario, &mut record)?;
    acts::lose_and_regain_daemon(&mut scenario, &mut record)?;
    Ok((scenario, record))
}

fn keep(mut scenario: Scenario) {
    let lbctl = require::built("lbctl").unwrap_or_else(|_| "lbctl".into());
    let request = if require::in_path("curl") {
        format!("curl http://{WEB}/")
    } else {
        format!(
            "bash -c 'exec 3<>/dev/tcp/{}/{}; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'",
            WEB.ip(),
            WEB.port()
        )
    };
    screen::heading("It keeps running");
    screen::say(&format!(
        "  export GUIDEWAY_SOCKET={socket}
  alias lbctl={lbctl}
  lbctl status
  lbctl backend list
  lbctl backend set backend-1 --weight 0
  lbctl stats
  nsenter --net=/run/netns/{client} {request}

Its files are in {directory}, the log of lbd is lbd/lbd.log there. Take it down with
  cargo xtask demo --down",
        socket = scenario.node.socket().display(),
        lbctl = lbctl.display(),
        client = scenario.topology.client.name(),
        directory = scenario.directory().display(),
    ));
    scenario.keep();
}
