//! HTTP requests in number, and what became of each.

use crate::{
    http::{self, Answer},
    netns::Namespace,
};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longest wait for a connection, and then for the answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Failures after which a burst gives up: a network that loses everything would take minutes to prove it.
const PATIENCE: usize = 64;

/// One request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was sent.
    pub sent: Instant,
    /// The answer, or the cause of the failure in words.
    pub outcome: Result<Answer, String>,
}

/// Sends `requests` requests from a namespace, `workers` at a time; fewer if 64 of them failed.
pub fn burst(
    client: &Namespace,
    server: SocketAddr,
    requests: usize,
    workers: usize,
) -> Vec<Sample> {
    let (sent, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut samples = Vec::new();
        while failed.load(Ordering::Relaxed) < PATIENCE
            && sent.fetch_add(1, Ordering::Relaxed) < requests
        {
            let sample = request(server);
            failed.fetch_add(usize::from(sample.outcome.is_err()), Ordering::Relaxed);
            samples.push(sample);
        }
        samples
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| scope.spawn(|| client.run(work)))
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .flat_map(|samples| samples.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Requests at a steady pace in the background, until [`Traffic::stop`].
#[derive(Debug)]
pub struct Traffic {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts `workers` workers in a namespace; each pauses for `pause` between two requests.
    pub fn start(client: &Namespace, server: SocketAddr, workers: usize, pause: Duration) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let worker = |_| {
            let (samples, stop) = (Arc::clone(&samples), Arc::clone(&stop));
            client.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let sample = request(server);
                    samples
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(sample);
                    thread::sleep(pause);
                }
            })
        };
        let workers = (0..workers).map(worker).collect();
        Self {
            samples,
            stop,
            workers,
        }
    }

    /// The requests that have ended so far, in that order.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the requests under way; all requests.
    pub fn stop(mut self) -> Vec<Sample> {
        self.end();
        self.samples()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            if let Err(panic) = worker.join()
                && !thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers by backend.
pub fn answers<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> BTreeMap<String, usize> {
    count(
        samples
            .into_iter()
            .filter_map(|sample| sample.outcome.as_ref().ok())
            .map(|answer| &answer.backend),
    )
}

/// Failures by cause.
pub fn failures<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> BTreeMap<String, usize> {
    count(
        samples
            .into_iter()
            .filter_map(|sample| sample.outcome.as_ref().err()),
    )
}

fn count<'a>(words: impl Iterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word.clone()).or_default() += 1;
    }
    counts
}

fn request(server: SocketAddr) -> Sample {
    Sample {
        sent: Instant::now(),
        outcome: http::ask(server, LIMIT).map_err(cause),
    }
}

fn cause(error: io::Error) -> String {
    match error.kind() {
        // What a socket with a time limit answers when no data came.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".into(),
        io::ErrorKind::InvalidData => error.to_string(),
        kind => kind.to_string(),
    }
}
