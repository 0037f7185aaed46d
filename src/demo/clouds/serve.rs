//! The HTTP side of a cloud: who may ask, what goes wrong on the way, and how a reply leaves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::reply::{Ask, Reply, Transfer};
use super::{Count, World, service, skyvern};
use crate::demo::life::Cloud;

/// The most bytes that a request may carry. No client sends more.
const BODY_MAX: usize = 64 * 1024;

/// Serves a cloud until it is dropped.
pub(super) async fn serve(listener: TcpListener, world: Arc<World>, cloud: Cloud) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(&world), cloud));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await, // out of file descriptors
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, world: Arc<World>, cloud: Cloud) {
    let _ = stream.set_nodelay(true);
    let serving = service_fn(move |request| respond(Arc::clone(&world), cloud, request));
    let mut server = hyper::server::conn::http1::Builder::new();
    // A client that goes away in the middle is no concern of a cloud's.
    let _ = server
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), serving)
        .await;
}

async fn respond(
    world: Arc<World>,
    cloud: Cloud,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<BoxBody<Bytes, std::io::Error>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let target = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let ask = Ask::new(head.method, target, head.headers, body.unwrap_or_default());
    let reply = reply(&world, cloud, &ask).await;
    if let Transfer::Slow(span) = reply.transfer {
        tokio::time::sleep(span).await;
    }
    Ok(reply.into_response())
}

/// The reply to a question: refused, overwhelmed, or the cloud's own.
async fn reply(world: &World, cloud: Cloud, ask: &Ask) -> Reply {
    let service = service(cloud);
    if !service.authorized(ask, &world.keys) {
        world.tally.add(Count::PollsRefused);
        return service.refusal(ask);
    }
    let now = world.now();
    if let Some(throttle) = world.plan.throttled(cloud, now) {
        world.tally.add(Count::PollsThrottled);
        return service.overwhelmed(throttle.until.saturating_sub(now));
    }
    if let Some(run_id) = skyvern::wants_replay(cloud, ask) {
        return skyvern::replay(world, ask, &run_id).await;
    }
    let reply = service.answer(world, ask);
    let proper = matches!(reply.status, 200 | 404) && reply.transfer != Transfer::CutOff;
    world.tally.add(if proper {
        Count::PollsAnswered
    } else {
        Count::PollsFailed
    });
    reply
}
