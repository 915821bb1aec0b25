//! One command: the question to `lbd` and the answer as text.

use super::{
    announce,
    args::{BackendCommand, BackendName, Cli, Command, Output, ServiceCommand},
    drain, explain, file, kit, print,
    report::{self, Failure},
    tables, trace,
};
use crate::{
    api::{
        client::Client,
        handle::{Change, ChangeOptions},
        openapi,
        protocol::{BackendView, ErrorBody, ErrorCode},
    },
    digest::compare,
    problem::Problem,
    spec::BackendSpec,
};
use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;
use std::path::Path;

type Answer = Result<String, Failure>;

/// Does a command, asking the `lbd` at `socket` where it takes one.
pub(super) async fn run(command: Command, socket: &Path, output: Output) -> Answer {
    let client = Client::new(socket)?;
    match command {
        Command::Status => Ok(say(output, &client.status().await?, tables::status)),
        Command::Stats { all } => Ok(say(output, &client.stats().await?, |stats| {
            tables::stats(stats, all)
        })),
        Command::Service(command) => service(command, &client, output).await,
        Command::Backend(command) => backend(command, &client, output).await,
        Command::Apply { file, removal } => apply(&file, removal.into(), &client, output).await,
        Command::Drains => Ok(say(output, &client.drains().await?, |drains| {
            tables::drains(drains)
        })),
        Command::Digest { compare } => digest(compare.as_deref(), &client, output).await,
        Command::Trace(arguments) => trace::run(*arguments, &client, output).await,
        Command::Explain(arguments) => explain::run(*arguments, &client, output).await,
        Command::Announce(command) => announce::announce(command, &client, output).await,
        Command::Node(command) => announce::node(command, &client, output).await,
        Command::History => Ok(say(output, &client.history().await?, |revisions| {
            tables::history(revisions)
        })),
        Command::Rollback { revision, removal } => {
            let rollback = Change::Rollback { revision };
            change(&client, &rollback, removal, output).await
        }
        Command::Export => {
            let state = client.state().await?.state;
            match output {
                Output::Table => file::to_yaml(&state),
                Output::Json => Ok(report::json(&state)),
            }
        }
        Command::BackendKit(command) => kit::run(command, &client, output).await,
        Command::Completions { shell } => Ok(completions(shell)),
        Command::Openapi => Ok(report::json(&openapi::document())),
    }
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lbctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

async fn service(command: ServiceCommand, client: &Client, output: Output) -> Answer {
    match command {
        ServiceCommand::Add(add) => {
            let making = add.making;
            change(client, &Change::AddService((*add).into()), making, output).await
        }
        ServiceCommand::Remove { name, removal } => {
            change(
                client,
                &Change::RemoveService { service: name },
                removal,
                output,
            )
            .await
        }
        ServiceCommand::List => Ok(say(output, &client.services().await?, |services| {
            tables::services(services)
        })),
        ServiceCommand::Show { name } => {
            Ok(say(output, &client.service(&name).await?, tables::service))
        }
    }
}

async fn backend(command: BackendCommand, client: &Client, output: Output) -> Answer {
    match command {
        BackendCommand::Add {
            name,
            service,
            address,
            weight,
            server_id,
            making,
        } => {
            let backend = BackendSpec {
                name,
                address,
                weight,
                drain: false,
                server_id,
            };
            change(
                client,
                &Change::AddBackend { service, backend },
                making,
                output,
            )
            .await
        }
        BackendCommand::Remove { backend, removal } => {
            let (service, backend) = find(client, backend).await?;
            change(
                client,
                &Change::RemoveBackend { service, backend },
                removal,
                output,
            )
            .await
        }
        BackendCommand::Set {
            backend,
            change: patch,
            making,
        } => {
            let (service, backend) = find(client, backend).await?;
            let patch = patch.into();
            change(
                client,
                &Change::SetBackend {
                    service,
                    backend,
                    patch,
                },
                making,
                output,
            )
            .await
        }
        BackendCommand::Drain {
            name,
            service,
            wait,
            timeout,
            making,
        } => {
            let drain = Change::Drain {
                backend: name.clone(),
                service: service.clone(),
                drain: true,
            };
            if !wait {
                return change(client, &drain, making, output).await;
            }
            let report = client.change(&drain, &making.into()).await?;
            if output == Output::Table {
                // What was begun is said before it is waited for.
                print(&report::changes(&report))?;
            }
            let drained = drain::wait(client, name, service, timeout).await?;
            Ok(say(output, &drained, |drained| drain::done(drained)))
        }
        BackendCommand::Undrain {
            name,
            service,
            making,
        } => {
            let undrain = Change::Drain {
                backend: name,
                service,
                drain: false,
            };
            change(client, &undrain, making, output).await
        }
        BackendCommand::List { service } => {
            let backends: Vec<BackendView> = match service {
                Some(service) => client.service(&service).await?.backends,
                None => client
                    .services()
                    .await?
                    .into_iter()
                    .flat_map(|service| service.backends)
                    .collect(),
            };
            Ok(say(output, &backends, |backends| {
                tables::backends(backends)
            }))
        }
    }
}

/// The service and the backend that are meant.
async fn find(
    client: &Client,
    BackendName { name, service }: BackendName,
) -> Result<(String, String), Failure> {
    if let Some(service) = service {
        return Ok((service, name));
    }
    let backends = client
        .services()
        .await?
        .into_iter()
        .flat_map(|service| service.backends);
    let mut services: Vec<_> = backends
        .filter(|backend| backend.name == name)
        .map(|found| found.service)
        .collect();
    match (services.pop(), services.is_empty()) {
        (Some(service), true) => Ok((service, name)),
        (Some(last), false) => {
            services.push(last);
            let message = format!(
                "backend {name:?} is in several services: add --service and one of {}",
                services.join(", ")
            );
            Err(ErrorBody::new(ErrorCode::Conflict, message).into())
        }
        (None, _) => {
            let message = format!("there is no backend {name:?}; `lbctl backend list` shows all");
            Err(ErrorBody::new(ErrorCode::NotFound, message).into())
        }
    }
}

async fn apply(path: &Path, options: ChangeOptions, client: &Client, output: Output) -> Answer {
    let document = file::read(path)?;
    let state = document.state()?;
    let report = client
        .change(&Change::Apply(state), &options)
        .await
        .map_err(|refusal| document.locate(refusal))?;
    Ok(say(output, &report, report::changes))
}

async fn digest(other: Option<&Path>, client: &Client, output: Output) -> Answer {
    let Some(other) = other else {
        return Ok(say(output, &client.digest().await?, tables::digest));
    };
    let document = file::read(other)?;
    let theirs = document.digest()?;
    let differences = compare(&client.digest().await?, &theirs);
    if differences.is_empty() {
        return Ok(say(output, &differences, |_| {
            format!("no difference to {}\n", document.name())
        }));
    }
    let message = format!("this node (ours) differs from {} (theirs)", document.name());
    let problems = differences.into_iter();
    Err(Failure::from(ErrorBody {
        code: ErrorCode::Conflict,
        message,
        problems: problems
            .map(|said| Problem::new("", "", said, ""))
            .collect(),
    }))
}

async fn change(
    client: &Client,
    change: &Change,
    options: impl Into<ChangeOptions>,
    output: Output,
) -> Answer {
    Ok(say(
        output,
        &client.change(change, &options.into()).await?,
        report::changes,
    ))
}

pub(super) fn say<T: Serialize>(
    output: Output,
    answer: &T,
    text: impl FnOnce(&T) -> String,
) -> String {
    match output {
        Output::Table => text(answer),
        Output::Json => report::json(answer),
    }
}
