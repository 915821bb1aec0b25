//! Requests to look on: the program is loaded once more in another thread, because the verifier takes longer than the loop
//! may stand still.

use super::{
    run::Daemon,
    trace::{Session, TraceReply},
};
use crate::{
    api::{
        handle::Reply,
        path::{ExplainRequest, Explanation},
        protocol::{ErrorBody, ErrorCode},
    },
    dataplane::{AyaDataPlane, Explainer, SHORTEST, Tracer},
    explain::{frame, hex},
    problem::Problem,
};
use anyhow::Result;
use nix::ifaddrs::getifaddrs;
use tokio::sync::mpsc;

/// A question, and where its answer goes.
type Question = (ExplainRequest, Reply<Result<Explanation, ErrorBody>>);

/// A program that was loaded to look on.
pub(super) enum Loaded {
    /// To explain.
    Explainer(Result<Explainer>),
    /// To trace.
    Tracer(Result<Tracer>),
}

/// What looks on.
pub(super) struct Looking {
    pub(super) loaded: mpsc::Sender<Loaded>,
    explainer: Option<Explainer>,
    /// Whether it is being loaded.
    is_loading: bool,
    /// Questions that wait for the explainer.
    waiting: Vec<Question>,
    /// Who waits for the program that traces.
    pub(super) pending: Option<TraceReply>,
    /// The trace under way.
    pub(super) session: Option<Session>,
    /// Whether a reconcile is due by what was attached.
    pub(super) due: bool,
}

impl Looking {
    /// Nothing is loaded yet; what will be is sent to `loaded`.
    pub(super) fn new(loaded: mpsc::Sender<Loaded>) -> Self {
        Self {
            loaded,
            explainer: None,
            is_loading: false,
            waiting: Vec::new(),
            pending: None,
            session: None,
            due: false,
        }
    }

    /// The program that explains; when it is not loaded yet, loading it begins.
    pub(super) fn explainer_or_load(&mut self, plane: &AyaDataPlane) -> Option<&mut Explainer> {
        if self.explainer.is_none() && !std::mem::replace(&mut self.is_loading, true) {
            let (loader, loaded) = (plane.loader(), self.loaded.clone());
            tokio::task::spawn_blocking(move || {
                // Nobody waits for it only when the daemon has ended.
                drop(loaded.blocking_send(Loaded::Explainer(loader.explainer())));
            });
        }
        self.explainer.as_mut()
    }

    /// Whether a trace is under way, or about to be.
    pub(super) fn is_tracing(&self) -> bool {
        self.pending.is_some() || self.session.is_some()
    }

    /// A trace is about to be under way.
    pub(super) fn begin(&mut self, reply: TraceReply) {
        self.pending = Some(reply);
    }
}

impl Daemon {
    /// Answers a question, as soon as there is a program to ask.
    pub(super) fn on_explain(
        &mut self,
        request: ExplainRequest,
        reply: Reply<Result<Explanation, ErrorBody>>,
    ) {
        if self.looking.explainer_or_load(&self.core.plane).is_some() {
            drop(reply.send(self.explain(&request)));
        } else {
            self.looking.waiting.push((request, reply));
        }
    }

    /// Takes a program that was loaded.
    pub(super) fn on_loaded(&mut self, loaded: Loaded) {
        let explainer = match loaded {
            Loaded::Explainer(explainer) => explainer,
            Loaded::Tracer(tracer) => return self.on_tracer(tracer),
        };
        self.looking.is_loading = false;
        let problem = match explainer {
            Ok(explainer) => {
                self.looking.explainer = Some(explainer);
                self.core.set_testable();
                self.announce();
                None
            }
            Err(problem) => {
                self.core.set_untestable(&problem);
                Some(failed(&problem))
            }
        };
        for (request, reply) in std::mem::take(&mut self.looking.waiting) {
            let answer = match &problem {
                None => self.explain(&request),
                Some(problem) => Err(problem.clone()),
            };
            drop(reply.send(answer));
        }
    }

    fn explain(&mut self, request: &ExplainRequest) -> Result<Explanation, ErrorBody> {
        let (name, index) = self.interface(request.interface.as_deref())?;
        let frame = frame_of(request, &name).map_err(invalid)?;
        let Some(explainer) = &mut self.looking.explainer else {
            return Err(ErrorBody::new(
                ErrorCode::Failed,
                "no program is loaded that explains",
            ));
        };
        let explained = explainer
            .run(&frame, index)
            .map_err(|problem| failed(&problem))?;
        Ok(self.core.explanation(&name, &frame, &explained))
    }

    /// Name and index of the configured interface that is meant.
    fn interface(&self, wanted: Option<&str>) -> Result<(String, u32), ErrorBody> {
        let attachments = self.core.attachments();
        let present = || {
            attachments
                .iter()
                .filter(|attachment| attachment.index != 0)
        };
        let found = match wanted {
            Some(name) => present().find(|attachment| attachment.name == name),
            None => present()
                .find(|attachment| attachment.mode.is_some())
                .or_else(|| present().next()),
        };
        let names: Vec<&str> = present()
            .map(|attachment| attachment.name.as_str())
            .collect();
        let hint = if names.is_empty() {
            "none of the configured interfaces exists; see `lbctl status`".into()
        } else {
            format!("choose from {}", names.join(", "))
        };
        found
            .map(|attachment| (attachment.name.clone(), attachment.index))
            .ok_or_else(|| {
                let given = wanted.unwrap_or_default();
                invalid(Problem::new(
                    "interface",
                    given,
                    "no interface that packets come in on",
                    hint,
                ))
            })
    }
}

/// Bytes that are given as text.
fn bytes(field: &str, text: &str) -> Result<Vec<u8>, Problem> {
    hex::decode(text).map_err(|fault| {
        let hint = format!("give the {field}'s bytes as two hexadecimal digits each");
        Problem::new(field, "", fault, hint)
    })
}

/// The frame that is asked about.
fn frame_of(request: &ExplainRequest, interface: &str) -> Result<Vec<u8>, Problem> {
    let Some(frame) = &request.frame else {
        let needed = |field: &str, value: &Option<String>| {
            value.clone().ok_or_else(|| {
                Problem::new(
                    field,
                    "",
                    "missing",
                    "give protocol, source and destination, or a whole frame",
                )
            })
        };
        let (protocol, source, destination) = (
            needed("protocol", &request.protocol)?,
            needed("source", &request.source)?,
            needed("destination", &request.destination)?,
        );
        let payload = bytes("payload", request.payload.as_deref().unwrap_or_default())?;
        let words = frame::Words {
            protocol: &protocol,
            source: &source,
            destination: &destination,
            flags: request.flags.as_deref().unwrap_or("syn"),
            payload: &payload,
            size: request.size,
        };
        return frame::build(&words, mac_of(interface));
    };
    let others = [
        &request.protocol,
        &request.source,
        &request.destination,
        &request.flags,
        &request.payload,
    ];
    if others.iter().any(|field| field.is_some()) || request.size.is_some() {
        return Err(Problem::new(
            "frame",
            "",
            "given together with words for a packet",
            "give either of them",
        ));
    }
    let bytes = bytes("frame", frame)?;
    if bytes.len() < SHORTEST {
        return Err(Problem::new(
            "frame",
            frame,
            "shorter than an Ethernet header",
            format!("give {SHORTEST} bytes at least"),
        ));
    }
    Ok(bytes)
}

/// The MAC address of an interface; all zero when it cannot be read, which changes no decision.
pub(super) fn mac_of(interface: &str) -> [u8; 6] {
    let Ok(mut addresses) = getifaddrs() else {
        return [0; 6];
    };
    addresses
        .find_map(|found| {
            let link = found.address?;
            let mac = link.as_link_addr()?.addr()?;
            (found.interface_name == interface).then_some(mac)
        })
        .unwrap_or_default()
}

pub(super) fn invalid(problem: Problem) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Invalid,
        message: problem.to_string(),
        problems: vec![problem],
    }
}

pub(super) fn failed(problem: &anyhow::Error) -> ErrorBody {
    ErrorBody::new(ErrorCode::Failed, format!("{problem:#}"))
}
