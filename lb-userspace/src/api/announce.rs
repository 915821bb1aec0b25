//! What the API says of announcing.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A VIP and whether it is announced: `GET /v1/announcements`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AnnouncementView {
    /// Its address or prefix.
    pub address: String,
    /// Names of its services.
    pub services: Vec<String>,
    /// What is to be: `announced`, `draining` (as one that routers should avoid) or `withdrawn`; empty while nothing is
    /// decided.
    pub wanted: String,
    /// What is, as far as the driver knows, in the same words.
    pub state: String,
    /// Why.
    pub reason: String,
    /// Weight of its services' backends that is healthy, published and tested.
    pub healthy_weight: u64,
    /// Weight of all of them.
    pub total_weight: u64,
    /// The former in percent of the latter.
    pub healthy_percent: f64,
    /// What keeps the driver from doing what is wanted; empty when nothing does.
    pub problem: String,
}

/// How the node as a whole attracts traffic: `GET /v1/node`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// `serving`; `draining` (its VIPs are announced so that routers avoid it); `lingering` (they are withdrawn, and it
    /// forwards what is under way); `safe` (it can be stopped).
    pub state: String,
    /// How routers are told: `route`, `exec`, `exabgp` or `gobgp`.
    pub driver: String,
    /// VIPs that are announced.
    pub announced: u64,
    /// Seconds until the state changes by itself; absent when it does not, or waits for the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// What keeps the driver from doing what is wanted; empty when nothing does.
    pub problem: String,
}
