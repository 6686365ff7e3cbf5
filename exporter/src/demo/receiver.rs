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
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// One log record or span, with what it was sent under.
#[derive(Clone, Debug)]
pub struct Item<T> {
    /// Attributes of the resource.
    pub resource: Arc<[KeyValue]>,
    /// Who made it.
    pub scope: Option<Arc<InstrumentationScope>>,
    /// The log record or span.
    pub item: T,
}

/// What was received, in the order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Log records.
    pub logs: Vec<Item<LogRecord>>,
    /// Spans.
    pub spans: Vec<Item<Span>>,
}

impl Received {
    /// Takes in a request of the logs signal.
    pub fn add_logs(&mut self, request: ExportLogsServiceRequest) {
        for resource in request.resource_logs {
            let attributes: Arc<[KeyValue]> =
                resource.resource.map(|r| r.attributes).unwrap_or_default().into();
            for scope in resource.scope_logs {
                let by = scope.scope.map(Arc::new);
                self.logs.extend(scope.log_records.into_iter().map(|item| Item {
                    resource: Arc::clone(&attributes),
                    scope: by.clone(),
                    item,
                }));
            }
        }
    }

    /// Takes in a request of the traces signal.
    pub fn add_spans(&mut self, request: ExportTraceServiceRequest) {
        for resource in request.resource_spans {
            let attributes: Arc<[KeyValue]> =
                resource.resource.map(|r| r.attributes).unwrap_or_default().into();
            for scope in resource.scope_spans {
                let by = scope.scope.map(Arc::new);
                self.spans.extend(scope.spans.into_iter().map(|item| Item {
                    resource: Arc::clone(&attributes),
                    scope: by.clone(),
                    item,
                }));
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    received: Mutex<Received>,
    changed: Notify,
}

/// Stops when dropped.
pub struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Receiver {
    /// On a free port of loopback.
    ///
    /// # Errors
    /// When no port can be listened on.
    pub async fn start() -> anyhow::Result<Self> {
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

    /// As `otlp.endpoint` takes it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What has come so far.
    pub fn received(&self) -> Received {
        self.shared.lock().clone()
    }

    /// What has come since the last time; the receiver keeps nothing of it.
    pub fn take(&self) -> Received {
        std::mem::take(&mut self.shared.lock())
    }

    /// Until there are `n` records of each signal, or `patience` is over.
    pub async fn wait_for(&self, n: usize, patience: Duration) {
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
        self.lock().add_logs(request.into_inner());
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
        self.lock().add_spans(request.into_inner());
        self.changed.notify_waiters();
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}
