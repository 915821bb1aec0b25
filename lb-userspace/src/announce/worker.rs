//! Runs a driver beside the control loop: at once when something else is wanted, again when it failed or was disturbed, and
//! from time to time all the same.

use super::{Announced, Announcer, Outcome, Wanted};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

/// First wait after a failure; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Between two looks at what nobody has said to have changed.
pub(super) const PERIOD: Duration = Duration::from_secs(30);

/// What is wanted, with a number that its reports repeat.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its number, from 1.
    pub number: u64,
    /// What is wanted.
    pub wanted: Arc<Wanted>,
}

/// What the driver says.
#[derive(Clone, Debug)]
pub enum Report {
    /// What was announced when it started, or why that is not known so far.
    Adopted(Result<Announced, String>),
    /// What became of an order.
    Done {
        /// The order's number.
        number: u64,
        /// What has been brought about.
        outcome: Outcome,
    },
}

/// A driver at work, until this is dropped.
#[derive(Debug)]
pub struct Worker {
    orders: watch::Sender<Option<Order>>,
    task: JoinHandle<()>,
}

/// Starts a driver within a tokio runtime. It first reports what it finds announced.
pub fn start(driver: impl Announcer, reports: mpsc::Sender<Report>) -> Worker {
    let (orders, taken) = watch::channel(None);
    let task = tokio::spawn(run(driver, taken, reports));
    Worker { orders, task }
}

impl Worker {
    /// Gives an order, in place of any earlier one.
    pub fn order(&self, order: Order) {
        self.orders.send_replace(Some(order));
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
    mut orders: watch::Receiver<Option<Order>>,
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
        let Some(order) = orders.borrow_and_update().clone() else {
            continue;
        };
        let outcome = driver.reconcile(&order.wanted).await;
        if outcome.is_complete() {
            (wait, retry) = (PERIOD, FIRST_RETRY);
        } else if outcome.more {
            wait = Duration::ZERO;
        } else {
            wait = retry;
            retry = (retry * 2).min(LAST_RETRY);
        }
        let report = Report::Done {
            number: order.number,
            outcome,
        };
        if reports.send(report).await.is_err() {
            return;
        }
    }
}
