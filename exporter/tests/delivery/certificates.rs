//! A CA, and two certificates for localhost: one that is good, and one that expired.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::mode::Protocol;

pub(crate) struct Certificates {
    pub(crate) ca_pem: String,
    good: Arc<ServerConfig>,
    expired: Arc<ServerConfig>,
}

impl Certificates {
    pub(crate) fn new(protocol: Protocol) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let config = |until: i32| {
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(names).unwrap();
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(until, 1, 1);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            let name: &[u8] = match protocol {
                Protocol::Grpc => b"h2",
                Protocol::Http => b"http/1.1",
            };
            config.alpn_protocols = vec![name.to_vec()];
            Arc::new(config)
        };
        Self { ca_pem, good: config(2999), expired: config(2002) }
    }

    pub(crate) fn config(&self, is_expired: bool) -> Arc<ServerConfig> {
        Arc::clone(if is_expired { &self.expired } else { &self.good })
    }
}
