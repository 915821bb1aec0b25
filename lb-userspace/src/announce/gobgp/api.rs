//! Calls of GoBGP's gRPC API, each within a time limit.

use super::{
    message::{
        AddPathRequest, DeletePathRequest, ListPathRequest, ListPathResponse, Nothing, Path,
        WatchEventRequest, WatchEventResponse, WatchFilter, WatchTable,
    },
    path::{self, FAMILIES},
};
use crate::announce::bgp::Routes;
use axum::http::uri::PathAndQuery;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use std::{net::SocketAddr, time::Duration};
use tokio::time::timeout;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// What can go wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// GoBGP says no.
    Refused(String),
    /// It does not answer, or not as it should.
    Silent(String),
}

impl Fault {
    /// In words.
    pub fn into_words(self) -> String {
        match self {
            Self::Refused(words) | Self::Silent(words) => words,
        }
    }
}

/// A connection to GoBGP.
#[derive(Clone, Debug)]
pub struct Api {
    channel: Channel,
    address: SocketAddr,
    limit: Duration,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn connect(address: SocketAddr, limit: Duration) -> Result<Self, String> {
        let absent = |problem: String| {
            format!(
                "gobgpd does not answer on {address}: {problem}. Is it running with `--api-hosts {address}`, and is this its \
                 address (announce.gobgp.address)?"
            )
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(|error| absent(error.to_string()))?;
        let channel = endpoint.connect_timeout(limit).connect().await;
        Ok(Self {
            channel: channel
                .map_err(|error| absent(format!("{:#}", anyhow::Error::from(error))))?,
            address,
            limit,
        })
    }

    /// Adds a path, or changes the one with its prefix and identifier.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn add(&self, path: Path) -> Result<(), Fault> {
        let request = AddPathRequest { path: Some(path) };
        self.call::<_, Nothing>("/apipb.GobgpApi/AddPath", request)
            .await
    }

    /// Deletes the path with this one's prefix and identifier.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn delete(&self, path: Path) -> Result<(), Fault> {
        let request = DeletePathRequest {
            family: path.family,
            path: Some(path),
        };
        self.call::<_, Nothing>("/apipb.GobgpApi/DeletePath", request)
            .await
    }

    /// Our routes in its table.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn list(&self) -> Result<Routes, Fault> {
        let mut routes = Routes::new();
        for family in FAMILIES {
            let request = ListPathRequest {
                family: Some(family),
            };
            let listing = async {
                let mut listing = self.open("/apipb.GobgpApi/ListPath", request);
                while let Some(ListPathResponse { destination }) = listing.try_next().await? {
                    let paths = destination.map(|destination| destination.paths);
                    let ours = paths.iter().flatten().filter(|path| path::is_ours(path));
                    routes.extend(
                        ours.filter_map(|ours| Some((path::prefix(ours)?, path::route(ours)))),
                    );
                }
                Ok(())
            };
            self.bounded(listing).await?;
        }
        Ok(routes)
    }

    /// Changes of the best paths, from when it is first polled. GoBGP says nothing, not even that it listens, before the first.
    pub fn watch(&self) -> BoxStream<'static, Result<WatchEventResponse, Status>> {
        let table = WatchTable {
            filters: vec![WatchFilter { kind: 0 }],
        };
        let request = WatchEventRequest { table: Some(table) };
        self.open("/apipb.GobgpApi/WatchEvent", request)
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<(), Fault>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        let exchange = async {
            ready(&mut client).await?;
            let codec = ProstCodec::<Q, A>::default();
            let method = PathAndQuery::from_static(method);
            client.unary(Request::new(request), method, codec).await
        };
        self.bounded(exchange).await.map(drop)
    }

    fn open<Q, A>(&self, method: &'static str, request: Q) -> BoxStream<'static, Result<A, Status>>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        let begin = async move {
            ready(&mut client).await?;
            let codec = ProstCodec::<Q, A>::default();
            let method = PathAndQuery::from_static(method);
            let answer = client.server_streaming(Request::new(request), method, codec);
            answer.await.map(tonic::Response::into_inner)
        };
        stream::once(begin).try_flatten().boxed()
    }

    async fn bounded<T>(
        &self,
        exchange: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Fault> {
        let (address, limit) = (self.address, self.limit);
        match timeout(limit, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(fault(address, &status)),
            Err(_) => {
                let limit = humantime::format_duration(limit);
                Err(Fault::Silent(format!(
                    "gobgpd on {address} has not answered within {limit} (announce.gobgp.timeout)"
                )))
            }
        }
    }
}

async fn ready(client: &mut Grpc<Channel>) -> Result<(), Status> {
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))
}

/// GoBGP refuses with the code `Unknown`; the transport has a cause to name.
fn fault(address: SocketAddr, status: &Status) -> Fault {
    use std::error::Error;
    let words = status.message();
    if status.source().is_some() || status.code() == Code::Unavailable {
        return Fault::Silent(format!("gobgpd on {address} does not answer: {words}"));
    }
    if status.code() == Code::Unimplemented {
        return Fault::Silent(format!(
            "what answers on {address} has no API of GoBGP 3 (package apipb): {words}"
        ));
    }
    Fault::Refused(format!("gobgpd refuses: {words}"))
}
