//! `lbctl explain`: a packet's path in text, a stage a paragraph.

use super::{
    args::{Explain, Output},
    report::{self, Failure},
};
use crate::{
    api::{
        client::Client,
        path::{
            BackendHit, ExplainRequest, Explanation, FlowTableView, FrameView, SecondHit, SizeView,
            SlotView,
        },
    },
    explain::{hex, pcap},
};
use std::fs;

/// Asks about a packet, or about each of a capture.
pub(super) async fn run(
    arguments: Explain,
    client: &Client,
    output: Output,
) -> Result<String, Failure> {
    let Some(file) = &arguments.pcap else {
        let explanation = client.explain(&arguments.request()).await?;
        return Ok(super::commands::say(output, &explanation, text));
    };
    let name = file.display();
    let bytes =
        fs::read(file).map_err(|error| Failure::local(format!("cannot read {name}: {error}")))?;
    let frames = pcap::read(&bytes, arguments.packets)
        .map_err(|fault| Failure::local(format!("{name} {fault}")))?;
    if frames.is_empty() {
        return Err(Failure::local(format!("{name} has no packets in it")));
    }
    let mut explanations = Vec::new();
    for frame in &frames {
        let request = ExplainRequest {
            frame: Some(hex::encode(&frame.bytes)),
            interface: arguments.interface.clone(),
            ..ExplainRequest::default()
        };
        explanations.push(client.explain(&request).await?);
    }
    Ok(match output {
        Output::Json => report::json(&explanations),
        Output::Table => {
            let numbered =
                |(number, explanation)| format!("packet {number}\n{}", text(explanation));
            let parts: Vec<String> = (1..).zip(&explanations).map(numbered).collect();
            parts.join("\n")
        }
    })
}

impl Explain {
    fn request(&self) -> ExplainRequest {
        ExplainRequest {
            protocol: self.protocol.clone(),
            source: self.source.clone(),
            destination: self.destination.clone(),
            flags: self.flags.clone(),
            size: self.size,
            payload: self.payload.clone(),
            frame: None,
            interface: self.interface.clone(),
        }
    }
}

/// The path of a packet, a stage a line and what hangs on it below.
fn text(explanation: &Explanation) -> String {
    let mut lines = Lines::default();
    lines.stage(
        "packet in",
        &format!(
            "{} bytes on {}",
            explanation.input.length, explanation.interface
        ),
    );
    lines.headers(&explanation.input);
    if let Some(flow) = &explanation.flow {
        let about = if flow.is_error {
            ", which an ICMP error is about"
        } else {
            ""
        };
        let line = format!(
            "{} {} > {}{about}",
            flow.protocol, flow.source, flow.destination
        );
        lines.stage("flow", &line);
    }
    if let Some(service) = &explanation.service {
        let name = if service.name.is_empty() {
            "(not in the desired state)"
        } else {
            &service.name
        };
        lines.stage("service", &format!("{name}, index {}", service.index));
        let hashed = match service.hashed.as_str() {
            "" => String::new(),
            hashed => format!(", of {hashed}"),
        };
        lines.stage("hash", &format!("{}{hashed}", service.hash));
    }
    if let Some(id) = &explanation.connection_id {
        let server = match &id.server_id {
            Some(server) => format!("server ID {server}"),
            None => "no server ID".into(),
        };
        lines.stage("QUIC", &server);
        lines.detail(&id.meaning);
    }
    if let Some(slot) = &explanation.slot {
        lines.slot(slot);
    }
    if let Some(table) = &explanation.flow_table {
        lines.flow_table(table);
    }
    if let Some(backend) = &explanation.backend {
        lines.backend(backend);
    }
    if let Some(second) = &explanation.second {
        let SecondHit {
            name,
            index,
            address,
        } = second;
        lines.stage("second", &format!("{name}, {address}, index {index}"));
        lines.detail(
            "named in the GUE header: a backend that has no socket of the flow hands the packet on to it",
        );
    }
    if let Some(size) = &explanation.size {
        lines.size(size);
    }
    if let Some(frame) = &explanation.output {
        lines.stage("packet out", &format!("{} bytes", frame.length));
        lines.headers(frame);
        lines.bytes(frame);
    }
    let verdict = &explanation.verdict;
    lines.stage("verdict", &format!("{} ({})", verdict.name, verdict.action));
    lines.detail(&verdict.description);
    if !verdict.advice.is_empty() {
        lines.detail(&format!("What to do: {}", verdict.advice));
    }
    lines.0
}

/// The text as it grows.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn stage(&mut self, name: &str, text: &str) {
        self.0 += &format!("{name:<12}{text}\n");
    }

    fn detail(&mut self, text: &str) {
        self.0 += &format!("{:12}{text}\n", "");
    }

    fn headers(&mut self, frame: &FrameView) {
        for header in &frame.headers {
            self.detail(header);
        }
    }

    fn bytes(&mut self, frame: &FrameView) {
        let digits: Vec<char> = frame.hex.chars().collect();
        for (number, line) in digits.chunks(64).enumerate() {
            let words: Vec<String> = line.chunks(8).map(|word| word.iter().collect()).collect();
            self.detail(&format!("{:04x}  {}", number * 32, words.join(" ")));
        }
    }

    fn slot(&mut self, slot: &SlotView) {
        self.stage(
            "slot",
            &format!(
                "{} of 65537: {} (word {})",
                slot.number, slot.state, slot.word
            ),
        );
        self.detail(&slot.meaning);
        let owner = |owner: &Option<String>| owner.clone().unwrap_or_else(|| "nobody".into());
        let (new, old) = (owner(&slot.new_owner), owner(&slot.old_owner));
        self.detail(&format!("new flows: {new}; old flows: {old}"));
    }

    fn flow_table(&mut self, table: &FlowTableView) {
        self.stage("flow table", &table.meaning);
        if let Some(backend) = &table.backend {
            let closing = if table.closing { ", closing" } else { "" };
            let idle = table.idle_seconds.unwrap_or_default();
            let second = match &table.second {
                Some(second) => format!(", or else {second}"),
                None => String::new(),
            };
            self.detail(&format!(
                "entry: {backend}{second}, last seen {idle} s ago{closing}"
            ));
        }
    }

    fn backend(&mut self, backend: &BackendHit) {
        let BackendHit {
            name,
            index,
            address,
            mode,
            state,
            next_hop,
            interface,
        } = backend;
        self.stage(
            "backend",
            &format!("{name}, {address}, mode {mode}, index {index}"),
        );
        self.detail(state);
        if next_hop.is_empty() {
            self.stage("next hop", "none");
        } else {
            self.stage("next hop", &format!("{next_hop} on {interface}"));
        }
    }

    fn size(&mut self, size: &SizeView) {
        let SizeView {
            received,
            added,
            mtu,
            fits,
        } = *size;
        let sum = received + added;
        let relation = if fits { "fits in" } else { "is more than" };
        self.stage(
            "size",
            &format!("{received} + {added} = {sum} bytes, which {relation} the MTU {mtu}"),
        );
    }
}
