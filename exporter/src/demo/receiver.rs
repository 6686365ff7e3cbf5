//! A real OTLP/gRPC receiver in this process: what it decoded is what is shown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What was received.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    pub(super) logs: Vec<LogRecord>,
    pub(super) spans: Vec<Span>,
}

#[derive(Debug, Default)]
struct Shared {
    received: Mutex<Received>,
    changed: Notify,
}

/// Stops when dropped.
pub(super) struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Receiver {
    /// On a free port of loopback.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let logs = LogsServiceServer::from_arc(Arc::clone(&shared))
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let traces = TraceServiceServer::from_arc(Arc::clone(&shared))
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let routes = Routes::new(logs).add_service(traces);
        let serving = tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!("the demo's receiver: {error}");
            }
        });
        Ok(Self { port, shared, server })
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn received(&self) -> Received {
        self.shared.lock().clone()
    }

    /// Until there are `n` records of each signal, or `patience` is over.
    pub(super) async fn wait_for(&mut self, n: usize, patience: Duration) {
        let all_here = async {
            loop {
                let changed = self.shared.changed.notified();
                {
                    let received = self.shared.lock();
                    if received.logs.len() >= n && received.spans.len() >= n {
                        return;
                    }
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(patience, all_here).await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl LogsService for Shared {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let resources = request.into_inner().resource_logs;
        let scopes = resources.into_iter().flat_map(|r| r.scope_logs);
        self.lock().logs.extend(scopes.flat_map(|s| s.log_records));
        self.changed.notify_waiters();
        Ok(Response::new(ExportLogsServiceResponse { partial_success: None }))
    }
}

#[tonic::async_trait]
impl TraceService for Shared {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources.into_iter().flat_map(|r| r.scope_spans);
        self.lock().spans.extend(scopes.flat_map(|s| s.spans));
        self.changed.notify_waiters();
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}
