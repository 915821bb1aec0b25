//! How long a service does not answer: datagrams, one after the other, and when answers came.

use crate::netns::Namespace;
use anyhow::Result;
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(2);
/// Bytes of a datagram: what the servers of [`crate::chaos`] answer.
const LENGTH: usize = 16;

/// Datagrams to one service over one flow, until this is dropped.
#[derive(Debug)]
pub struct Probe {
    answers: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    /// Begins to ask from a namespace.
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn start(client: &Namespace, server: SocketAddr) -> Result<Self> {
        let socket = client.run(|| -> Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let (answers, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (answers, stop): (Arc<Mutex<Vec<Instant>>>, _) =
                (Arc::clone(&answers), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // An error is that of an earlier datagram (ICMP), or means a loss.
                    let _ = socket.send(&[0; LENGTH]);
                    thread::sleep(PACE);
                    let mut came = false;
                    while socket.recv(&mut [0; 64]).is_ok() {
                        came = true;
                    }
                    if came {
                        answers
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(Instant::now());
                    }
                }
            }
        });
        Ok(Self {
            answers,
            stop,
            thread: Some(thread),
        })
    }

    /// The longest time without an answer since a moment, until now.
    pub fn longest_silence(&self, from: Instant) -> Duration {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        longest(&answers, from, Instant::now())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The longest time between two of these moments, or between one and an end of the span.
fn longest(answers: &[Instant], from: Instant, to: Instant) -> Duration {
    let within = answers.iter().filter(|at| (from..to).contains(at));
    let mut before = from;
    let mut longest = Duration::ZERO;
    for at in within.chain([&to]) {
        longest = longest.max(at.duration_since(before));
        before = *at;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_the_longest_gap_within_the_span() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let gap = |answers: &[u64], from, to| {
            let answers: Vec<Instant> = answers.iter().map(|ms| at(*ms)).collect();
            longest(&answers, at(from), at(to)).as_millis()
        };
        assert_eq!(gap(&[], 10, 40), 30);
        assert_eq!(gap(&[5, 12, 30, 39], 10, 40), 18);
        assert_eq!(gap(&[12, 14], 10, 40), 26);
        assert_eq!(gap(&[35, 90], 10, 40), 25);
    }
}
