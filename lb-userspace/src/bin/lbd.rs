//! `lbd`, Guideway's daemon.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use lb_userspace::{
    announce::{self, exabgp, setting::DEFAULT_SOCKET, watchdog},
    config::{DEFAULT_PATH, NodeConfig},
    daemon::start,
    dataplane::aya,
};
use nix::net::if_::{Interface, if_nameindex};
use std::{os::unix::net::UnixStream, path::PathBuf, process::ExitCode};
use tokio::runtime::Runtime;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Keeps the XDP load balancer's maps true: services and backends, health, next hops.
///
/// Stopping or killing it leaves packets flowing; a new one continues where it stopped.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  lbd --config /etc/guideway/lbd.yaml          run in the foreground
  lbd check-config --config lbd.yaml           check a configuration and change nothing
  lbd detach --config /etc/guideway/lbd.yaml   take the data plane down
  lbd watchdog --config /etc/guideway/lbd.yaml  withdraw VIPs when packets are not balanced any more
  lbd --log info,lb_ebpf=debug                 say every packet that is dropped, too"
)]
struct Arguments {
    /// The node's configuration.
    #[arg(long, short, global = true, default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    /// What to log: a level, or filters such as `info,lb_userspace::health=debug`.
    ///
    /// Unless given: GUIDEWAY_LOG of the environment, else RUST_LOG, else `info`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration, say what is wrong, change nothing.
    CheckConfig,
    /// Take the data plane down: announcements, programs, maps and pins. Traffic for services is no longer balanced.
    Detach,
    /// Run beside lbd: withdraw what is announced when packets are not balanced any more, by whatever cause.
    Watchdog,
    /// Run by ExaBGP, as a process of its configuration: have it announce what lbd says. Needs no configuration of the node.
    Exabgp {
        /// Where to listen for lbd: announce.exabgp.socket of its configuration. Beside it, what it said is kept.
        #[arg(long, default_value = DEFAULT_SOCKET, value_name = "PATH")]
        socket: PathBuf,
    },
}

/// Variables that name the log filter, the first that is set before the others.
const LOG_VARIABLES: [&str; 2] = ["GUIDEWAY_LOG", "RUST_LOG"];
/// A filter as errors show it.
const FILTER_EXAMPLE: &str = "info,lb_userspace::health=debug";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        None => serve(arguments),
        Some(Command::Watchdog) => watch(arguments),
        Some(Command::Exabgp { socket }) => {
            begin_log(arguments)?;
            runtime()?.block_on(exabgp::process::run(socket))
        }
        Some(Command::CheckConfig) => check_config(arguments),
        Some(Command::Detach) => {
            let config = start::read_config(&arguments.config)?;
            aya::check_privileges()?;
            let withdrawn = withdraw(&config)?;
            for address in &withdrawn {
                println!("withdrew {address}");
            }
            let done = aya::detach(&config.pin_directory)?;
            if done.is_empty() && withdrawn.is_empty() {
                println!("nothing was attached");
            }
            for line in done {
                println!("{line}");
            }
            Ok(())
        }
    }
}

/// Withdraws what is announced, so that routers send nothing here any more. Not under a running `lbd`, which would announce it
/// again.
fn withdraw(config: &NodeConfig) -> Result<Vec<String>> {
    let Some(settings) = &config.announce else {
        return Ok(Vec::new());
    };
    if UnixStream::connect(&config.socket).is_ok() {
        bail!(
            "lbd is running on {}; stop it first",
            config.socket.display()
        );
    }
    let withdrawn = runtime()?.block_on(announce::withdraw_all(settings, &config.state_directory));
    withdrawn.map_err(|problem| anyhow::anyhow!("what is announced cannot be withdrawn: {problem}"))
}

fn watch(arguments: &Arguments) -> Result<()> {
    let config = start::read_config(&arguments.config)?;
    begin_log(arguments)?;
    runtime()?.block_on(watchdog::run(&arguments.config, config))
}

fn check_config(arguments: &Arguments) -> Result<()> {
    let file = arguments.config.display();
    let config = start::read_config(&arguments.config)?;
    log_filter(arguments)?;
    for missing in config.missing_interfaces(&interfaces()?) {
        eprintln!("warning: {file}: {missing}");
    }
    println!("{file}: ok");
    Ok(())
}

/// Names of the interfaces that exist.
fn interfaces() -> Result<Vec<String>> {
    let existing = if_nameindex().context("listing the network interfaces")?;
    let name = |interface: &Interface| interface.name().to_string_lossy().into_owned();
    Ok(existing.iter().map(name).collect())
}

fn serve(arguments: &Arguments) -> Result<()> {
    begin_log(arguments)?;
    runtime()?.block_on(start::run(&arguments.config))
}

fn begin_log(arguments: &Arguments) -> Result<()> {
    let filter = log_filter(arguments)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")
}

fn log_filter(arguments: &Arguments) -> Result<EnvFilter> {
    let (source, text) = log_setting(arguments.log.as_deref(), |name| std::env::var(name).ok());
    parse_filter(&text).with_context(|| {
        format!("{source}: `{text}` is not a log filter; give one such as {FILTER_EXAMPLE}")
    })
}

/// A word by itself is a target to `EnvFilter` unless it is a level, so that a level misspelt would silence the
/// daemon.
fn parse_filter(text: &str) -> Result<EnvFilter> {
    let meant = |word: &str| word.parse::<LevelFilter>().is_ok() || word.starts_with("lb_");
    let is_word = |part: &&str| {
        let plain = |c: char| c.is_alphanumeric() || "_:-".contains(c);
        !part.is_empty() && part.chars().all(plain)
    };
    if let Some(word) = text.split(',').filter(is_word).find(|word| !meant(word)) {
        bail!(
            "`{word}` is neither a level (off, error, warn, info, debug, trace) nor one of lbd's targets \
             (lb_userspace and what is below it, lb_ebpf); for another target, say its level: {word}=info"
        );
    }
    Ok(EnvFilter::try_new(text)?)
}

/// What to log, and where that is said. An empty text says nothing.
fn log_setting(
    option: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> (&'static str, String) {
    let option = option.map(|text| ("--log", text.to_owned()));
    let variables = LOG_VARIABLES
        .into_iter()
        .filter_map(|name| Some((name, variable(name)?)));
    option
        .into_iter()
        .chain(variables)
        .find(|(_, text)| !text.is_empty())
        .unwrap_or(("the default", "info".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = include_str!("../../../deploy/lbd.service");
    const WATCHDOG_UNIT: &str = include_str!("../../../deploy/lbd-watchdog.service");

    const EXABGP: &str = include_str!("../../../deploy/exabgp.conf");

    /// Values of a key of a unit, in order.
    fn values(unit: &'static str, key: &str) -> Vec<&'static str> {
        unit.lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .collect()
    }

    #[test]
    fn the_option_comes_before_the_variables() {
        let setting = |option, own: &str, rust: &str| {
            log_setting(option, |name| {
                Some(if name == "GUIDEWAY_LOG" { own } else { rust }.to_owned())
            })
        };
        for (option, own, rust, expected) in [
            (Some("warn"), "error", "debug", ("--log", "warn")),
            (None, "error", "debug", ("GUIDEWAY_LOG", "error")),
            (Some(""), "", "debug", ("RUST_LOG", "debug")),
            (None, "", "", ("the default", "info")),
        ] {
            let (source, text) = setting(option, own, rust);
            assert_eq!((source, text.as_str()), expected);
        }
        assert_eq!(log_setting(None, |_| None).1, "info");
    }

    #[test]
    fn a_word_that_is_no_level_is_not_taken_for_a_target() {
        for good in [
            "info",
            "OFF",
            "info,lb_ebpf=debug",
            "lb_userspace::health",
            "warn,hyper=info,",
            "lb_userspace[request{id=1}]=trace",
            FILTER_EXAMPLE,
        ] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for (bad, word) in [
            ("inof", "inof"),
            ("lb_ebpf=debug,wran", "wran"),
            ("hyper", "hyper"),
        ] {
            let refused = parse_filter(bad).unwrap_err().to_string();
            let start = format!("`{word}` is neither a level (off, error, ");
            assert!(refused.starts_with(&start), "{bad}: {refused}");
        }
        assert!(parse_filter("lb_ebpf=inof").is_err());
    }

    #[test]
    fn the_unit_sets_what_the_program_reads() {
        for unit in [UNIT, WATCHDOG_UNIT] {
            let variables: Vec<(&str, &str)> = values(unit, "Environment")
                .into_iter()
                .map(|setting| setting.split_once('=').unwrap())
                .collect();
            assert_eq!(variables, [(LOG_VARIABLES[0], "info")]);
        }
    }

    #[test]
    fn the_unit_s_commands_are_understood() {
        for (unit, key) in [
            (UNIT, "ExecStartPre"),
            (UNIT, "ExecStart"),
            (WATCHDOG_UNIT, "ExecStart"),
        ] {
            let [line] = values(unit, key)[..] else {
                panic!("not one {key}")
            };
            let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
            assert_eq!(arguments.config, std::path::Path::new(DEFAULT_PATH));
            let is_watchdog = matches!(arguments.command, Some(Command::Watchdog));
            assert_eq!(is_watchdog, unit == WATCHDOG_UNIT);
        }
    }

    #[test]
    fn what_exabgp_runs_is_understood() {
        let line = EXABGP
            .lines()
            .find_map(|line| line.trim().strip_prefix("run "));
        let line = line.unwrap().strip_suffix(';').unwrap();
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        let Some(Command::Exabgp { socket }) = arguments.command else {
            panic!("{line}")
        };
        assert_eq!(socket, std::path::Path::new(DEFAULT_SOCKET));
    }
}
