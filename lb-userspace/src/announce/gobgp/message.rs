//! Messages of GoBGP's gRPC API (package `apipb`, version 3): the fields that are used here, with their numbers. What is not
//! named is skipped when read, and has its default when sent.

use prost::Message;

/// A message of any type.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    /// Which type.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// An address family; both numbers are those of BGP.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Family {
    /// 1: IPv4, 2: IPv6.
    #[prost(int32, tag = "1")]
    pub afi: i32,
    /// 1: unicast.
    #[prost(int32, tag = "2")]
    pub safi: i32,
}

/// A path to a prefix.
#[derive(Clone, PartialEq, Message)]
pub struct Path {
    /// The prefix: an [`IpAddressPrefix`].
    #[prost(message, optional, tag = "1")]
    pub nlri: Option<Any>,
    /// Attributes, one a type.
    #[prost(message, repeated, tag = "2")]
    pub attributes: Vec<Any>,
    /// In an event: the path is gone.
    #[prost(bool, tag = "5")]
    pub is_withdraw: bool,
    /// Its family.
    #[prost(message, optional, tag = "9")]
    pub family: Option<Family>,
    /// Which neighbor it is from; no address for those that the API has added.
    #[prost(string, tag = "15")]
    pub neighbor: String,
    /// Its number among paths of one source to one prefix.
    #[prost(uint32, tag = "18")]
    pub identifier: u32,
}

/// A prefix.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IpAddressPrefix {
    /// Its length in bits.
    #[prost(uint32, tag = "1")]
    pub length: u32,
    /// Its address.
    #[prost(string, tag = "2")]
    pub address: String,
}

/// ORIGIN.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Origin {
    /// 0: IGP.
    #[prost(uint32, tag = "1")]
    pub origin: u32,
}

/// NEXT_HOP.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NextHop {
    /// The address.
    #[prost(string, tag = "1")]
    pub address: String,
}

/// MULTI_EXIT_DISC.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Med {
    /// The value.
    #[prost(uint32, tag = "1")]
    pub med: u32,
}

/// LOCAL_PREF.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LocalPref {
    /// The value.
    #[prost(uint32, tag = "1")]
    pub preference: u32,
}

/// COMMUNITIES.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Communities {
    /// Each as one number.
    #[prost(uint32, repeated, tag = "1")]
    pub communities: Vec<u32>,
}

/// MP_REACH_NLRI, which has the next hop of IPv6.
#[derive(Clone, PartialEq, Message)]
pub struct MpReach {
    /// The family of the prefixes.
    #[prost(message, optional, tag = "1")]
    pub family: Option<Family>,
    /// Next hops: one here.
    #[prost(string, repeated, tag = "2")]
    pub next_hops: Vec<String>,
    /// Prefixes: one here.
    #[prost(message, repeated, tag = "3")]
    pub prefixes: Vec<Any>,
}

/// Asks to add a path.
#[derive(Clone, PartialEq, Message)]
pub struct AddPathRequest {
    /// The path.
    #[prost(message, optional, tag = "3")]
    pub path: Option<Path>,
}

/// An answer with nothing in it that is used.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Nothing {}

/// Asks to delete a path.
#[derive(Clone, PartialEq, Message)]
pub struct DeletePathRequest {
    /// Its family.
    #[prost(message, optional, tag = "3")]
    pub family: Option<Family>,
    /// The path. Never left out: then all paths would be deleted.
    #[prost(message, optional, tag = "4")]
    pub path: Option<Path>,
}

/// Asks for the paths of a family in the global table.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ListPathRequest {
    /// The family.
    #[prost(message, optional, tag = "3")]
    pub family: Option<Family>,
}

/// One prefix of the answer.
#[derive(Clone, PartialEq, Message)]
pub struct ListPathResponse {
    /// The prefix.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<Destination>,
}

/// A prefix in the table.
#[derive(Clone, PartialEq, Message)]
pub struct Destination {
    /// All paths to it.
    #[prost(message, repeated, tag = "2")]
    pub paths: Vec<Path>,
}

/// Asks for events.
#[derive(Clone, PartialEq, Message)]
pub struct WatchEventRequest {
    /// Of tables.
    #[prost(message, optional, tag = "2")]
    pub table: Option<WatchTable>,
}

/// Which events of tables.
#[derive(Clone, PartialEq, Message)]
pub struct WatchTable {
    /// A filter for each kind.
    #[prost(message, repeated, tag = "1")]
    pub filters: Vec<WatchFilter>,
}

/// A kind of events.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct WatchFilter {
    /// 0: the best path to a prefix has changed.
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

/// An event.
#[derive(Clone, PartialEq, Message)]
pub struct WatchEventResponse {
    /// Of a table.
    #[prost(message, optional, tag = "3")]
    pub table: Option<TableEvent>,
}

/// What has changed in a table.
#[derive(Clone, PartialEq, Message)]
pub struct TableEvent {
    /// Paths that are new, or gone.
    #[prost(message, repeated, tag = "2")]
    pub paths: Vec<Path>,
}
