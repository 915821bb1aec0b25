//! `lbctl trace`: packets as they come, in the terminal and in a capture with both sides of the rewrite.

use super::{
    args::{Output, Trace},
    print,
    report::Failure,
};
use crate::{
    api::{
        client::Client,
        path::{FlowView, TraceLine, TraceRequest, TraceStatus, TracedPacket},
    },
    explain::{hex, pcap::Writer},
};
use std::{
    fs::File,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

/// Interfaces of the capture, by number.
const SIDES: [&str; 2] = ["in", "out"];

/// Shows packets until as many have come as are wanted.
pub(super) async fn run(
    arguments: Trace,
    client: &Client,
    output: Output,
) -> Result<String, Failure> {
    let mut capture = arguments.pcap.as_deref().map(Capture::new).transpose()?;
    let mut lines = client.trace(&arguments.request()).await?;
    let mut last = TraceStatus::default();
    let mut shown = 0;
    while arguments.count.is_none_or(|count| shown < count) {
        let Some(line) = lines.next().await? else {
            return Err(Failure::local(
                "lbd ended the trace: it is stopping, or this end did not keep up".into(),
            ));
        };
        match &line {
            TraceLine::Packet(packet) => {
                shown += 1;
                if let Some(capture) = &mut capture {
                    capture.add(packet)?;
                }
            }
            TraceLine::Status(status) if output == Output::Table => {
                if status.lost > last.lost {
                    let lost = status.lost - last.lost;
                    print(&format!(
                        "{lost} packets more were not shown; narrow the filter, or use --sample\n"
                    ))?;
                }
                last = *status;
                continue;
            }
            TraceLine::Status(_) => {}
        }
        print(&match (output, &line) {
            (Output::Table, TraceLine::Packet(packet)) => text(packet),
            _ => serde_json::to_string(&line).unwrap_or_default() + "\n",
        })?;
    }
    Ok(String::new())
}

impl Trace {
    fn request(&self) -> TraceRequest {
        TraceRequest {
            service: self.service.clone(),
            source: self.source.clone(),
            reason: self.reason.clone(),
            sample: self.sample.map(|sample| sample.0),
            limit: self.limit,
        }
    }
}

/// A packet in a line: when, verdict, flow, where to, sizes.
fn text(packet: &TracedPacket) -> String {
    let time = UNIX_EPOCH + Duration::from_nanos(packet.time_ns);
    let time = humantime::format_rfc3339_micros(time);
    let flow = match &packet.flow {
        Some(FlowView {
            protocol,
            source,
            destination,
            is_error,
        }) => {
            let about = if *is_error { "error about " } else { "" };
            format!("{about}{protocol} {source} > {destination}")
        }
        None => "no IP".into(),
    };
    let target = match (&packet.service, &packet.backend) {
        (_, Some(backend)) => format!(" to {backend}"),
        (Some(service), None) => format!(" for {service}"),
        (None, None) => String::new(),
    };
    let size = match packet.length_out {
        0 => format!("{} bytes", packet.length_in),
        out => format!("{} -> {out} bytes", packet.length_in),
    };
    format!("{time} {:<18} {flow}{target}, {size}\n", packet.verdict)
}

/// A pcapng file of what is shown.
struct Capture {
    writer: Writer<File>,
    name: String,
}

impl Capture {
    fn new(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let failed = |error| Failure::local(format!("cannot write {name}: {error}"));
        let file = File::create(path).map_err(failed)?;
        let writer = Writer::new(file, &SIDES).map_err(failed)?;
        Ok(Self { writer, name })
    }

    fn add(&mut self, packet: &TracedPacket) -> Result<(), Failure> {
        let comment = match &packet.backend {
            Some(backend) => format!("{} to {backend}", packet.verdict),
            None => packet.verdict.clone(),
        };
        let sides = [
            (&packet.input, packet.length_in),
            (&packet.output, packet.length_out),
        ];
        for (side, (digits, length)) in (0..).zip(sides) {
            let bytes = hex::decode(digits).map_err(|fault| {
                Failure::local(format!(
                    "lbd sent a frame that {fault}: is it of this version?"
                ))
            })?;
            if length == 0 {
                continue;
            }
            self.writer
                .write(side, packet.time_ns, &bytes, length, &comment)
                .map_err(|error| Failure::local(format!("cannot write {}: {error}", self.name)))?;
        }
        Ok(())
    }
}
