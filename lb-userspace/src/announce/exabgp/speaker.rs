//! ExaBGP's process API: commands of one line on its side of a pipe, answered `done` or `error` in order on the other.
//!
//! After an answer that did not come, nobody can tell which command the next one is for. Then commands that wait are called
//! back (`reset`), and all is left out up to the answer of `version`, which no other command gives.

use crate::{
    announce::bgp::{Community, Route},
    prefix::Prefix,
};
use bytes::BytesMut;
use futures::StreamExt;
use std::{collections::BTreeSet, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_util::codec::{AnyDelimiterCodec, FramedRead};
use tracing::debug;

/// Longest wait for a line from ExaBGP, which answers a command within a few milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Longest line, in bytes.
const MAX_LINE: usize = 1 << 16;
/// As much is shown of a line that nobody understands, in characters.
const SHOWN: usize = 80;

/// ExaBGP at the other end of two pipes.
#[derive(Debug)]
pub struct Speaker<R, W> {
    answers: FramedRead<R, AnyDelimiterCodec>,
    output: W,
    /// What is not written yet.
    unsent: BytesMut,
    /// Whether the next answer is for the next command.
    in_step: bool,
    /// The last line that is no answer.
    noise: String,
}

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ExaBGP has closed a pipe: it has ended, or wants this process to.
    Gone,
    /// It does not answer as it should.
    Odd(String),
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Speaker<R, W> {
    /// ExaBGP with what it writes and what it reads.
    pub fn new(input: R, output: W) -> Self {
        // Bytes, since a line that is no text is no answer, and no reason to end either.
        let lines = AnyDelimiterCodec::new_with_max_length(b"\n".into(), b"\n".into(), MAX_LINE);
        Self {
            answers: FramedRead::new(input, lines),
            output,
            unsent: BytesMut::new(),
            in_step: false,
            noise: String::new(),
        }
    }

    /// Says commands; whether ExaBGP has taken each.
    ///
    /// # Errors
    /// When it does not answer all of them: what became of each is not known.
    pub async fn tell(&mut self, commands: &[String]) -> Result<Vec<bool>, Fault> {
        let mut taken = Vec::with_capacity(commands.len());
        if commands.is_empty() {
            return Ok(taken);
        }
        self.step().await?;
        self.in_step = false;
        for command in commands {
            self.say(command);
        }
        while taken.len() < commands.len() {
            let line = self.line().await?;
            match line.as_str() {
                "done" => taken.push(true),
                "error" => taken.push(false),
                _ => self.noise = line,
            }
        }
        self.in_step = true;
        Ok(taken)
    }

    /// Prefixes of the routes that it has for its neighbors, by whomever.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn table(&mut self) -> Result<BTreeSet<Prefix>, Fault> {
        self.step().await?;
        self.in_step = false;
        self.say("show adj-rib out");
        let mut table = BTreeSet::new();
        loop {
            let line = self.line().await?;
            match line.as_str() {
                "done" => break,
                "error" => {
                    self.in_step = true;
                    return Err(Fault::Odd(
                        "ExaBGP does not show its routes (`show adj-rib out`)".into(),
                    ));
                }
                // neighbor 192.0.2.1 ipv4 unicast 198.51.100.1/32 next-hop self
                line => table.extend(
                    line.split(' ')
                        .nth(4)
                        .and_then(|word| word.parse::<Prefix>().ok()),
                ),
            }
        }
        self.in_step = true;
        Ok(table)
    }

    /// Returns when ExaBGP is gone. What it says unasked is of no interest.
    pub async fn gone(&mut self) {
        while let Some(Ok(line)) = self.answers.next().await {
            debug!(line = %String::from_utf8_lossy(&line), "ExaBGP says");
        }
    }

    fn say(&mut self, command: &str) {
        self.unsent.extend_from_slice(command.as_bytes());
        self.unsent.extend_from_slice(b"\n");
    }

    /// Finds the place again at which the next answer is for the next command.
    async fn step(&mut self) -> Result<(), Fault> {
        if self.in_step {
            return Ok(());
        }
        // A line that is half written is written whole, so that it is not taken for a shorter one.
        let end = self.unsent.iter().position(|byte| *byte == b'\n');
        self.unsent.truncate(end.map_or(0, |end| end + 1));
        self.say("reset");
        self.say("version");
        while !self.line().await?.starts_with("exabgp ") {}
        while self.line().await? != "done" {}
        self.in_step = true;
        self.noise.clear();
        Ok(())
    }

    /// The next line, while what is not written yet is written.
    async fn line(&mut self) -> Result<String, Fault> {
        let (answers, output, unsent) = (&mut self.answers, &mut self.output, &mut self.unsent);
        let next = async {
            tokio::select! {
                biased;
                line = answers.next() => match line {
                    Some(Ok(line)) => Ok(line),
                    // The pipe is closed, or carries what no ExaBGP says.
                    Some(Err(_)) | None => Err(Fault::Gone),
                },
                // So is the other one.
                _ = send(output, unsent) => Err(Fault::Gone),
            }
        };
        match timeout(PATIENCE, next).await {
            Ok(line) => line.map(|line| String::from_utf8_lossy(&line).into_owned()),
            Err(_) => Err(self.silence()),
        }
    }

    fn silence(&mut self) -> Fault {
        let seconds = PATIENCE.as_secs();
        let noise: String = self.noise.chars().take(SHOWN).collect();
        Fault::Odd(if noise.is_empty() {
            format!(
                "ExaBGP has not answered for {seconds} s; its setting `exabgp.api.ack` must be true"
            )
        } else {
            format!("ExaBGP has not answered for {seconds} s, but says `{noise}`")
        })
    }
}

/// Writes all, then waits for ever; returns what is in the way.
async fn send(output: &mut (impl AsyncWrite + Unpin), unsent: &mut BytesMut) -> io::Error {
    while !unsent.is_empty() {
        // Loses nothing when it is dropped: what is written is gone from `unsent`.
        if let Err(error) = output.write_buf(unsent).await {
            return error;
        }
    }
    std::future::pending().await
}

/// The command that announces a route.
pub fn announce(prefix: Prefix, route: &Route) -> String {
    let hop = route
        .next_hop
        .map_or_else(|| "self".into(), |hop| hop.to_string());
    let mut command = format!(
        "announce route {} next-hop {hop} med {}",
        prefix.cidr(),
        route.med
    );
    if let Some(preference) = route.local_pref {
        command += &format!(" local-preference {preference}");
    }
    if !route.communities.is_empty() {
        let communities: Vec<String> = route.communities.iter().map(Community::to_string).collect();
        command += &format!(" community [{}]", communities.join(" "));
    }
    command
}

/// The command that withdraws the route to a prefix.
pub fn withdraw(prefix: Prefix) -> String {
    format!("withdraw route {}", prefix.cidr())
}
