//! TLS, with certificates made for each test.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::*;
use crate::config::{ClientFiles, NamedFile};

/// An authority that vouches for servers and clients.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

pub(super) fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
}

/// A certificate and its key, PEM.
pub(super) struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(super) fn issue(&self, name: &str, is_expired: bool) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if is_expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }

    /// Trusts nobody else.
    pub(super) fn files(&self, folder: &Path) -> TlsFiles {
        let authorities = Some(file(folder, "ca", &self.0.pem()));
        TlsFiles { authorities, client: None }
    }
}

impl Identity {
    fn files(&self, folder: &Path) -> ClientFiles {
        ClientFiles {
            certificate: file(folder, "certificate", &self.certificate.pem()),
            key: file(folder, "key", &self.key.serialize_pem()),
        }
    }

    pub(super) fn acceptor(&self, protocol: Protocol, clients: Option<&Authority>) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.0.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let mut config =
            builder.with_single_cert(vec![self.certificate.der().clone()], key).unwrap();
        config.alpn_protocols = match protocol {
            Protocol::Grpc => vec![b"h2".to_vec()],
            Protocol::Http => vec![b"http/1.1".to_vec()],
        };
        TlsAcceptor::from(Arc::new(config))
    }
}

fn file(folder: &Path, name: &str, text: &str) -> NamedFile {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    NamedFile { origin: "file f".into(), key: format!("otlp.{name}_file"), path }
}

/// One request to a server with this certificate.
async fn answer(
    protocol: Protocol,
    server: &Identity,
    clients: Option<&Authority>,
    files: TlsFiles,
) -> Answer {
    let acceptor = server.acceptor(protocol, clients);
    let server = Server::start_with(protocol, Some(acceptor), move |_| {
        let is_grpc = protocol == Protocol::Grpc;
        std::future::ready(if is_grpc { Reply::grpc(&()) } else { Reply::new(200, &[], "") })
    })
    .await;
    let endpoint = format!("https://127.0.0.1:{}", server.port);
    let receiver = Receiver { tls: files, ..receiver(&endpoint, protocol) };
    client(Signal::Logs, &receiver).send(Bytes::from_static(b"body")).await
}

#[tokio::test]
async fn a_receiver_is_trusted_if_its_authority_is() {
    let (ours, other) = (authority(), authority());
    for protocol in [Protocol::Grpc, Protocol::Http] {
        for (server, words) in [
            (ours.issue("127.0.0.1", false), None),
            (ours.issue("127.0.0.1", true), Some("certificate has expired")),
            (ours.issue("elsewhere.example", false), Some("certificate is for another name")),
            (
                other.issue("127.0.0.1", false),
                Some("certificate is not trusted: name the authority"),
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let got = answer(protocol, &server, None, ours.files(folder.path())).await;
            match words {
                None => assert_eq!(got, taken(), "{protocol:?}"),
                Some(words) => {
                    let why = not_now(got);
                    assert!(why.contains(words), "{why}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_client_shows_its_certificate_where_it_is_asked_for() {
    let (ours, clients) = (authority(), authority());
    let server = ours.issue("127.0.0.1", false);
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let folder = tempfile::tempdir().unwrap();
        let mut files = ours.files(folder.path());
        let why = not_now(answer(protocol, &server, Some(&clients), files.clone()).await);
        assert!(!why.is_empty());
        // Of an authority that the server does not know.
        files.client = Some(ours.issue("flowend", false).files(folder.path()));
        let why = not_now(answer(protocol, &server, Some(&clients), files.clone()).await);
        assert!(!why.is_empty());
        files.client = Some(clients.issue("flowend", false).files(folder.path()));
        assert_eq!(answer(protocol, &server, Some(&clients), files.clone()).await, taken());
        assert_eq!(answer(protocol, &server, None, files).await, taken(), "not asked: not shown");
    }
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_told() {
    let server = Server::always(Protocol::Http, || Reply::new(200, &[], "")).await;
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("https://127.0.0.1:{}", server.port);
    let mut receiver = receiver(&endpoint, Protocol::Http);
    receiver.tls = authority().files(folder.path());
    let why = not_now(client(Signal::Logs, &receiver).send(Bytes::new()).await);
    assert!(why.contains("is the endpoint http:// rather than https://?"), "{why}");
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_the_remedy() {
    let ours = authority();
    let identity = ours.issue("flowend", false);
    let pem = ours.0.pem();
    let garbled = pem.replace("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\n!!!");
    let cut = pem.replace("-----END CERTIFICATE-----", "");
    let der = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    let key = identity.key.serialize_pem();
    let other = ours.issue("other", false).key.serialize_pem();
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (name, text, problem) in [
        ("ca", None, "cannot be read: No such file"),
        ("ca", Some(""), "holds nothing of the kind that is needed"),
        ("ca", Some("hello"), "holds nothing of the kind that is needed"),
        ("ca", Some(&key), "holds nothing of the kind that is needed"),
        ("ca", Some(&garbled), "is garbled: a section is no base64"),
        ("ca", Some(&cut), "is cut short"),
        ("ca", Some(der), "holds what is no certificate"),
        ("certificate", None, "cannot be read: No such file"),
        ("certificate", Some(""), "holds nothing of the kind that is needed"),
        ("key", None, "cannot be read: No such file"),
        ("key", Some(&pem), "holds nothing of the kind that is needed"),
        ("key", Some(&encrypted), "holds nothing of the kind that is needed"),
        ("key", Some(&other), "does not fit "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut files = ours.files(folder.path());
        files.client = Some(identity.files(folder.path()));
        let path = folder.path().join(name);
        match text {
            None => std::fs::remove_file(&path).unwrap(),
            Some(text) => std::fs::write(&path, text).unwrap(),
        }
        let receiver = Receiver { tls: files, ..receiver("https://c:1", Protocol::Grpc) };
        let error = Client::new(Signal::Logs, &receiver, OwnSockets::default()).unwrap_err();
        let error = error.to_string();
        let head = format!("file f: key `otlp.{name}_file`: {} {problem}", path.display());
        assert!(error.starts_with(&head), "{error}\n{head}");
        assert!(error.contains("; name "), "{error}");
        // Without TLS they do not matter.
        let receiver = Receiver { endpoint: "http://c:1".parse().unwrap(), ..receiver };
        assert!(Client::new(Signal::Logs, &receiver, OwnSockets::default()).is_ok());
    }
}
