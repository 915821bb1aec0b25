//! The kernel's packet generator (its Documentation/networking/pktgen.rst), which is run by files.

use super::wire::{FIRST_PORT, FLOWS, INTERFACE, PORT};
use crate::{
    netns::Namespace,
    topology::{CLIENT_V4, VIP_V4},
};
use anyhow::{Context, Result, bail};
use std::{fs, time::Duration};

/// Its files, as the calling thread's network namespace has them.
const DIRECTORY: &str = "/proc/thread-self/net/pktgen";

/// A generator of the wire's frames on CPU 0.
#[derive(Debug)]
pub struct Pktgen<'a> {
    router: &'a Namespace,
}

impl<'a> Pktgen<'a> {
    /// One that sends to this MAC. A veth takes neither clones nor bursts.
    pub fn new(router: &'a Namespace, destination: [u8; 6]) -> Result<Self> {
        let generator = Self { router };
        let thread = "kpktgend_0";
        generator.write(thread, "rem_device_all")?;
        generator.write(thread, &format!("add_device {INTERFACE}"))?;
        let mac = destination.map(|byte| format!("{byte:02x}")).join(":");
        for line in [
            "clone_skb 0".to_owned(),
            "burst 1".into(),
            "pkt_size 64".into(),
            "delay 0".into(),
            format!("dst_mac {mac}"),
            format!("src_min {CLIENT_V4}"),
            format!("src_max {CLIENT_V4}"),
            format!("dst_min {VIP_V4}"),
            format!("dst_max {VIP_V4}"),
            format!("udp_src_min {FIRST_PORT}"),
            // The first that is not taken.
            format!("udp_src_max {}", u32::from(FIRST_PORT) + FLOWS),
            format!("udp_dst_min {PORT}"),
            format!("udp_dst_max {PORT}"),
        ] {
            generator.write(INTERFACE, &line)?;
        }
        Ok(generator)
    }

    /// Sends so many frames, one of each flow in turn. What it took.
    pub fn send(&self, frames: u32) -> Result<Duration> {
        self.write(INTERFACE, &format!("count {frames}"))?;
        self.write("pgctrl", "start")?;
        let text = self.read(INTERFACE)?;
        parse(&text).with_context(|| format!("pktgen says {text:?}"))
    }

    fn write(&self, file: &str, line: &str) -> Result<()> {
        let path = format!("{DIRECTORY}/{file}");
        self.router
            .run(|| fs::write(&path, format!("{line}\n")))
            .with_context(|| format!("{path}: {line}"))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("{DIRECTORY}/{file}");
        self.router
            .run(|| fs::read_to_string(&path))
            .with_context(|| path.clone())
    }
}

/// The time in a line such as `Result: OK: 13101142(c12220741+d880401) usec, 10000000 (60byte,0frags)`.
fn parse(text: &str) -> Result<Duration> {
    let Some((_, result)) = text.split_once("Result: OK: ") else {
        bail!("no result");
    };
    let digits = result.split('(').next().unwrap_or_default();
    Ok(Duration::from_micros(digits.parse()?))
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn a_result_is_a_time() {
        let text = "Params: count 5\nResult: OK: 131(c122+d9) usec, 5 (60byte,0frags)\n  38167pps";
        assert_eq!(parse(text).unwrap(), Duration::from_micros(131));
        assert!(parse("Result: Idle").is_err());
        assert!(parse("Result: OK: none").is_err());
    }
}
