//! One command: the question to `lbd` and the answer as text.

use super::{
    args::{BackendCommand, BackendName, Cli, Command, Output, ServiceCommand},
    file,
    report::{self, Failure},
    tables,
};
use crate::{
    api::{
        client::Client,
        handle::Change,
        openapi,
        protocol::{BackendView, ErrorBody, ErrorCode},
    },
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
        Command::Apply { file, dry_run } => apply(&file, dry_run, &client, output).await,
        Command::Export => {
            let state = client.state().await?.state;
            match output {
                Output::Table => file::to_yaml(&state),
                Output::Json => Ok(report::json(&state)),
            }
        }
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
            let dry_run = add.dry_run;
            change(client, &Change::AddService((*add).into()), dry_run, output).await
        }
        ServiceCommand::Remove { name, dry_run } => {
            change(
                client,
                &Change::RemoveService { service: name },
                dry_run,
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
            dry_run,
        } => {
            let backend = BackendSpec {
                name,
                address,
                weight,
                drain: false,
            };
            change(
                client,
                &Change::AddBackend { service, backend },
                dry_run,
                output,
            )
            .await
        }
        BackendCommand::Remove { backend, dry_run } => {
            let (service, backend) = find(client, backend).await?;
            change(
                client,
                &Change::RemoveBackend { service, backend },
                dry_run,
                output,
            )
            .await
        }
        BackendCommand::Set {
            backend,
            change: patch,
            dry_run,
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
                dry_run,
                output,
            )
            .await
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

async fn apply(path: &Path, dry_run: bool, client: &Client, output: Output) -> Answer {
    let document = file::read(path)?;
    let state = document.state()?;
    let report = client
        .change(&Change::Apply(state), dry_run)
        .await
        .map_err(|refusal| document.locate(refusal))?;
    Ok(say(output, &report, report::changes))
}

async fn change(client: &Client, change: &Change, dry_run: bool, output: Output) -> Answer {
    Ok(say(
        output,
        &client.change(change, dry_run).await?,
        report::changes,
    ))
}

fn say<T: Serialize>(output: Output, answer: &T, text: impl FnOnce(&T) -> String) -> String {
    match output {
        Output::Table => text(answer),
        Output::Json => report::json(answer),
    }
}
