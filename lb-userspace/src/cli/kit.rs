//! `lbctl backend-kit`: what makes a host a backend. `setup` asks `lbd`; the others work on this host and need none.

use super::{
    args::{Attach, AttachBy, Check, KitCommand, Output, Switch},
    print,
    report::{self, Failure},
};
use crate::{
    api::{
        client::Client,
        protocol::{BackendView, ErrorBody, ErrorCode, ServiceView},
    },
    dataplane::{
        AttachMode, InterfaceSetting,
        decap::{self, Settings, Status},
    },
    kit::{
        Need,
        check::{self, Finding, Listener},
        facts::Facts,
        setup,
    },
    spec::mode_name,
};
use lb_common::{
    backend::Mode,
    gue,
    header::{PROTOCOL_TCP, PROTOCOL_UDP},
};
use std::{fmt::Write, str::FromStr};

type Answer = Result<String, Failure>;

/// Does a command.
pub(super) async fn run(command: KitCommand, client: &Client, output: Output) -> Answer {
    match command {
        KitCommand::Setup { service, backend } => {
            let service = client.service(&service).await?;
            set_up(&service, backend.as_deref())
        }
        KitCommand::Check(check) => look(&check, output),
        KitCommand::Attach(attach)
            if attach.second_chance == Some(Switch::On) && attach.from.is_empty() =>
        {
            Err(Failure::local(
                "--second-chance on: nobody's packets are handed on but those of balancers that are known; name them with --from PREFIX"
                    .into(),
            ))
        }
        KitCommand::Attach(attach) => {
            let done = decap::attach(&attach.pins.pin_directory, &settings(&attach));
            lines(done, output)
        }
        KitCommand::Detach { pins } => {
            let mut done = decap::detach(&pins.pin_directory).map_err(local)?;
            if done.is_empty() {
                done.push("nothing was attached".into());
            }
            lines(Ok(done), output)
        }
        KitCommand::Status { pins } => match decap::status(&pins.pin_directory).map_err(local)? {
            Some(status) => Ok(match output {
                Output::Table => text(&status),
                Output::Json => report::json(&status),
            }),
            None => Err(Failure::local(
                "nothing is attached; attach with lbctl backend-kit attach --interface INTERFACE"
                    .into(),
            )),
        },
    }
}

fn local(error: anyhow::Error) -> Failure {
    Failure::local(format!("{error:#}"))
}

fn lines(done: anyhow::Result<Vec<String>>, output: Output) -> Answer {
    let done = done.map_err(local)?;
    Ok(match output {
        Output::Table => done.join("\n") + "\n",
        Output::Json => report::json(&done),
    })
}

fn text(status: &Status) -> String {
    let mut text = status.interfaces.join("\n") + "\n\n";
    for (reason, packets) in &status.packets {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{reason:<20} {packets}");
    }
    text
}

fn set_up(service: &ServiceView, backend: Option<&str>) -> Answer {
    let wanted = |view: &&BackendView| backend.is_none_or(|name| view.name == name);
    let views: Vec<&BackendView> = service.backends.iter().filter(wanted).collect();
    if views.is_empty() {
        let message = match backend {
            Some(name) => format!(
                "service {:?} has no backend {name:?}; lbctl backend list shows all",
                service.name
            ),
            None => format!("service {:?} has no backends", service.name),
        };
        return Err(ErrorBody::new(ErrorCode::NotFound, message).into());
    }
    let scripts: Result<Vec<String>, Failure> = views
        .into_iter()
        .map(|view| {
            let need = Need {
                vip: parsed(&service.address)?,
                mode: mode(&service.mode)?,
                address: parsed(&view.address)?,
                gue_port: service.gue_port.unwrap_or(gue::DEFAULT_PORT),
            };
            Ok(setup::script(&view.name, &need))
        })
        .collect();
    Ok(scripts?.join("\n"))
}

fn parsed<T: FromStr>(address: &str) -> Result<T, Failure> {
    let parsed = address.parse();
    parsed.map_err(|_| Failure::local(format!("lbd gave {address:?}, which is no address")))
}

fn mode(name: &str) -> Result<Mode, Failure> {
    let mut modes = [Mode::L2, Mode::Ipip, Mode::Gue].into_iter();
    modes.find(|mode| mode_name(*mode) == name).ok_or_else(|| {
        Failure::local(format!(
            "lbd gave mode {name:?}, which this lbctl does not know"
        ))
    })
}

fn look(arguments: &Check, output: Output) -> Answer {
    let facts = Facts::read(&arguments.pins.pin_directory).map_err(local)?;
    let need = Need {
        vip: arguments.vip,
        mode: mode(&arguments.mode)?,
        address: arguments.address,
        gue_port: arguments.gue_port,
    };
    let service = arguments.port.map(|port| Listener {
        protocol: if arguments.protocol == "udp" {
            PROTOCOL_UDP
        } else {
            PROTOCOL_TCP
        },
        port,
    });
    let found = check::findings(&need, service, &facts);
    let wrong = found
        .iter()
        .filter(|finding| finding.mend.is_some())
        .count();
    let text = match output {
        Output::Table => found.iter().map(line).collect(),
        Output::Json => report::json(&found),
    };
    if wrong == 0 {
        return Ok(text);
    }
    print(&text)?;
    Err(Failure::local(format!(
        "{wrong} of {} things are wrong with this host",
        found.len()
    )))
}

fn line(finding: &Finding) -> String {
    match &finding.mend {
        None => format!("ok     {}\n", finding.said),
        Some(mend) => format!("WRONG  {}\n       mend: {mend}\n", finding.said),
    }
}

fn settings(attach: &Attach) -> Settings {
    let mode = match attach.mode {
        AttachBy::Xdp | AttachBy::Tc => AttachMode::Auto,
        AttachBy::Native => AttachMode::Native,
        AttachBy::Generic => AttachMode::Generic,
    };
    let interfaces = attach.interface.iter();
    Settings {
        interfaces: interfaces
            .map(|name| InterfaceSetting {
                name: name.clone(),
                attach: mode,
            })
            .collect(),
        traffic_control: attach.mode == AttachBy::Tc,
        sources: attach.from.clone(),
        vips: attach.vip.clone(),
        hosts: attach.to.clone(),
        port: attach.gue_port,
        second_chance: attach.second_chance != Some(Switch::Off),
    }
}
