//! Runs a driver beside the control loop: at once when something else is wanted, again when it failed or was disturbed, and
//! from time to time all the same.

use super::{Announced, Announcer, Outcome, Wanted};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};

/// First wait after a failure; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Between two looks at what nobody has said to have changed.
pub(super) const PERIOD: Duration = Duration::from_secs(30);

/// How long an order is repeated without a word from who gave it: whose loop stands still may be wrong by now, and a watchdog that
/// withdraws what is sick then is not to be outdone.
const STALE: Duration = Duration::from_secs(3);

/// What is wanted.
#[derive(Clone, Debug)]
struct Order {
    /// None before the first.
    wanted: Option<Arc<Wanted>>,
    /// When that was last said.
    said: Instant,
}

/// What the driver says.
#[derive(Clone, Debug)]
pub enum Report {
    /// What was announced when it started, or why that is not known so far.
    Adopted(Result<Announced, String>),
    /// What has been brought about.
    Done(Outcome),
}

/// A driver at work, until this is dropped.
#[derive(Debug)]
pub struct Worker {
    orders: watch::Sender<Order>,
    task: JoinHandle<()>,
}

/// Starts a driver within a tokio runtime. It first reports what it finds announced.
pub fn start(driver: impl Announcer, reports: mpsc::Sender<Report>) -> Worker {
    let (orders, taken) = watch::channel(Order {
        wanted: None,
        said: Instant::now(),
    });
    let task = tokio::spawn(run(driver, taken, reports));
    Worker { orders, task }
}

impl Worker {
    /// Orders what is wanted, in place of any earlier order.
    pub fn order(&self, wanted: Arc<Wanted>) {
        self.orders.send_replace(Order {
            wanted: Some(wanted),
            said: Instant::now(),
        });
    }

    /// Says that the last order is still right.
    pub fn confirm(&self) {
        self.orders.send_if_modified(|order| {
            order.said = Instant::now();
            false
        });
    }

    /// Whether its task has ended although nobody stopped it: a defect.
    pub fn has_died(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut driver: impl Announcer,
    mut orders: watch::Receiver<Order>,
    reports: mpsc::Sender<Report>,
) {
    let mut retry = FIRST_RETRY;
    loop {
        let found = driver.adopt().await;
        let is_known = found.is_ok();
        if reports.send(Report::Adopted(found)).await.is_err() {
            return;
        }
        if is_known {
            break;
        }
        tokio::select! {
            () = driver.disturbed() => {}
            () = sleep(retry) => {}
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
    let mut wait = PERIOD;
    retry = FIRST_RETRY;
    loop {
        tokio::select! {
            changed = orders.changed() => match changed {
                Ok(()) => retry = FIRST_RETRY,
                Err(_) => return,
            },
            () = driver.disturbed() => {}
            () = sleep(wait) => {}
        }
        let Order { wanted, said } = orders.borrow_and_update().clone();
        let Some(wanted) = wanted else {
            continue;
        };
        if said.elapsed() > STALE {
            wait = STALE;
            continue;
        }
        let outcome = driver.reconcile(&wanted).await;
        if outcome.is_complete() {
            (wait, retry) = (PERIOD, FIRST_RETRY);
        } else if outcome.more {
            wait = Duration::ZERO;
        } else {
            wait = retry;
            retry = (retry * 2).min(LAST_RETRY);
        }
        if reports.send(Report::Done(outcome)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    /// Counts what it is told, and is disturbed when somebody says so.
    struct Counting {
        told: Arc<AtomicU32>,
        disturbance: Arc<Notify>,
    }

    impl Announcer for Counting {
        async fn adopt(&mut self) -> Result<Announced, String> {
            Ok(Announced::new())
        }

        async fn reconcile(&mut self, _wanted: &Wanted) -> Outcome {
            self.told.fetch_add(1, Ordering::Relaxed);
            Outcome::default()
        }

        async fn disturbed(&mut self) {
            self.disturbance.notified().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_that_nobody_confirms_is_not_repeated() {
        let (told, disturbance) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let driver = Counting {
            told: Arc::clone(&told),
            disturbance: Arc::clone(&disturbance),
        };
        let (reports, mut said) = mpsc::channel(64);
        let worker = start(driver, reports);
        worker.order(Arc::default());
        sleep(Duration::from_millis(10)).await;
        assert_eq!(told.load(Ordering::Relaxed), 1);
        disturbance.notify_one();
        sleep(STALE).await;
        assert_eq!(told.load(Ordering::Relaxed), 2, "said a moment ago");
        for _ in 0..5 {
            sleep(Duration::from_secs(1)).await;
            disturbance.notify_one();
        }
        assert_eq!(told.load(Ordering::Relaxed), 2, "who ordered it is silent");
        worker.confirm();
        sleep(STALE).await;
        assert_eq!(told.load(Ordering::Relaxed), 3, "and speaks again");
        while said.try_recv().is_ok() {}
    }
}
