//! `lbd`, Guideway's daemon.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lb_userspace::{config::DEFAULT_PATH, daemon::run, dataplane::aya};
use std::{path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// Keeps the XDP load balancer's maps true: services and backends, health, next hops.
///
/// Stopping or killing it leaves packets flowing; a new one continues where it stopped.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  lbd --config /etc/guideway/lbd.yaml          run in the foreground
  lbd check-config --config lbd.yaml           check a configuration and change nothing
  lbd detach --config /etc/guideway/lbd.yaml   take the data plane down
  lbd --log info,lb_ebpf=debug                 say every packet that is dropped, too"
)]
struct Arguments {
    /// The node's configuration.
    #[arg(long, short, global = true, default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    /// What to log: a level, or filters such as `info,lb_userspace::health=debug`.
    #[arg(
        long,
        global = true,
        env = "GUIDEWAY_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Check the configuration, say what is wrong, change nothing.
    CheckConfig,
    /// Take the data plane down: programs, maps and pins. Traffic for services is no longer balanced.
    Detach,
}

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
    match arguments.command {
        None => serve(arguments),
        Some(Command::CheckConfig) => {
            run::read_config(&arguments.config)?;
            println!("{}: ok", arguments.config.display());
            Ok(())
        }
        Some(Command::Detach) => {
            let config = run::read_config(&arguments.config)?;
            aya::check_privileges()?;
            let done = aya::detach(&config.pin_directory)?;
            if done.is_empty() {
                println!("nothing was attached");
            }
            for line in done {
                println!("{line}");
            }
            Ok(())
        }
    }
}

fn serve(arguments: &Arguments) -> Result<()> {
    let filter =
        EnvFilter::try_new(&arguments.log).with_context(|| format!("--log {}", arguments.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(run::run(&arguments.config))
}
