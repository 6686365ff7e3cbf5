//! A question over HTTP, and its answer.

use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;

/// A store that is asked a question under load is slow; one that is hung is a failure.
const DEADLINE: Duration = Duration::from_secs(60);

/// The status and the body with which the URL answers. Status 0 where there is no answer, and then the body says
/// why: a program that is still starting is asked again by the caller.
pub(crate) fn get(url: &str) -> (u16, String) {
    // A thread of its own: the caller may be in a runtime, which must not be blocked by another one. It is in
    // the caller's network namespace.
    thread::scope(|scope| scope.spawn(|| get_here(url)).join().unwrap_or_else(panicked))
}

fn get_here(url: &str) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async { tokio::time::timeout(DEADLINE, ask(url)).await });
    match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => (0, format!("{url}: {error:#}")),
        Err(_) => (0, format!("{url}: no answer within {DEADLINE:?}")),
    }
}

async fn ask(url: &str) -> anyhow::Result<(u16, String)> {
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let answer = client.get(url.parse()?).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn panicked(payload: Box<dyn std::any::Any + Send>) -> (u16, String) {
    std::panic::resume_unwind(payload)
}
