//! `lbctl announce` and `lbctl node`.

use super::{
    args::{AnnounceCommand, NodeCommand, Output},
    commands::say,
    drain::{FOREVER, Progress},
    report::Failure,
    tables::{listing, plain},
};
use crate::{
    api::{
        announce::{AnnouncementView, NodeView},
        client::Client,
        protocol::{ErrorBody, ErrorCode},
    },
    prefix::Prefix,
};
use comfy_table::Table;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

type Answer = Result<String, Failure>;

/// `lbctl announce`.
pub(super) async fn announce(command: AnnounceCommand, client: &Client, output: Output) -> Answer {
    let views = client.announcements().await?;
    match command {
        AnnounceCommand::List => Ok(say(output, &views, |views| list(views))),
        AnnounceCommand::Show { address } => {
            let is_it = |view: &&AnnouncementView| view.address.parse::<Prefix>() == Ok(address);
            let view = views.iter().find(is_it).ok_or_else(|| {
                let message = format!(
                    "no service has the address {address}; `lbctl announce list` shows all"
                );
                ErrorBody::new(ErrorCode::NotFound, message)
            })?;
            Ok(say(output, view, one))
        }
    }
}

/// `lbctl node`.
pub(super) async fn node(command: NodeCommand, client: &Client, output: Output) -> Answer {
    let view = match command {
        NodeCommand::Show => client.node().await?,
        NodeCommand::Undrain => client.drain_node(false).await?,
        NodeCommand::Drain { wait: false, .. } => client.drain_node(true).await?,
        NodeCommand::Drain {
            wait: true,
            timeout,
        } => {
            client.drain_node(true).await?;
            wait(client, timeout).await?
        }
    };
    Ok(say(output, &view, |view| line(view) + "\n"))
}

/// Waits until the node can be stopped; tells how it goes on standard error.
async fn wait(client: &Client, limit: Option<Duration>) -> Result<NodeView, Failure> {
    let mut progress = Progress::new();
    let end = Instant::now() + limit.unwrap_or(FOREVER).min(FOREVER);
    let mut last = NodeView::default();
    let watching = async {
        loop {
            let view = client.node().await.map_err(|gone| {
                let message = format!(
                    "whether the node is safe to stop is not known: {}",
                    gone.message
                );
                ErrorBody { message, ..gone }
            })?;
            match view.state.as_str() {
                "safe" => return Ok(view),
                "serving" => {
                    let said =
                        "the node's drain was ended by somebody else, so it is not safe to stop";
                    return Err(ErrorBody::new(ErrorCode::Conflict, said));
                }
                _ => progress.say(&line(&view), view.state != last.state),
            }
            last = view;
            sleep(LOOK).await;
        }
    };
    let result = tokio::select! {
        watched = timeout_at(end, watching) => watched.unwrap_or_else(|_| Err(goes_on("not safe to stop in time"))),
        // A signal that cannot be waited for ends this process as it would have without.
        Ok(()) = tokio::signal::ctrl_c() => Err(goes_on("interrupted")),
    };
    progress.finish();
    Ok(result?)
}

fn goes_on(why: &str) -> ErrorBody {
    let message = format!(
        "{why}; the node's drain goes on: `lbctl node show` shows it, `lbctl node undrain` ends it"
    );
    ErrorBody::new(ErrorCode::Failed, message)
}

/// How the node stands, in a line.
fn line(view: &NodeView) -> String {
    let NodeView {
        state,
        driver,
        announced,
        seconds_left,
        problem,
    } = view;
    let meaning = match state.as_str() {
        "draining" => "VIPs are announced so that routers avoid this node",
        "lingering" => "VIPs are withdrawn; what is under way is still forwarded",
        "safe" => "safe to stop",
        _ => "VIPs are announced while they can be served",
    };
    let left = match (seconds_left, problem.is_empty()) {
        (Some(seconds), _) => format!(", {seconds} s left"),
        (None, true) => String::new(),
        (None, false) => format!("; waiting: {problem}"),
    };
    format!("{state}: {meaning} ({announced} announced by {driver}){left}")
}

fn list(views: &[AnnouncementView]) -> String {
    let mut table = Table::new();
    table.set_header(["ADDRESS", "STATE", "HEALTHY", "SERVICES", "REASON"]);
    for view in views {
        table.add_row([
            view.address.clone(),
            view.state.clone(),
            format!("{:.0}%", view.healthy_percent.floor()),
            view.services.join(","),
            reason(view),
        ]);
    }
    listing(table, &[2], "no services, so nothing to announce")
}

fn one(view: &AnnouncementView) -> String {
    let mut table = Table::new();
    table.add_row(["address", &view.address]);
    table.add_row(["state", &view.state]);
    table.add_row(["wanted", &view.wanted]);
    table.add_row(["services", &view.services.join(", ")]);
    table.add_row([
        "healthy",
        &format!("{} of {} weight", view.healthy_weight, view.total_weight),
    ]);
    table.add_row(["reason", &view.reason]);
    if !view.problem.is_empty() {
        table.add_row(["problem", &view.problem]);
    }
    plain(table, &[])
}

/// Why, and what is in the way of it.
fn reason(view: &AnnouncementView) -> String {
    match view.problem.as_str() {
        "" => view.reason.clone(),
        problem => format!("{}; {problem}", view.reason),
    }
}
