//! TLS: whom flowend trusts, what it shows of itself, and what went wrong, in words that help.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use super::ClientError;
use crate::config::{ClientFiles, NamedFile, TlsFiles};

/// A file of certificates is a few hundred kB at most.
const MAX_FILE: u64 = 16 << 20;

/// The configuration of a connection to an https:// endpoint, without ALPN.
///
/// # Errors
/// A file that cannot be read or used, or a machine without roots.
pub(super) fn client_config(files: &TlsFiles) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?;
    let roots = match &files.authorities {
        Some(file) => roots_of(file)?,
        None => system_roots()?,
    };
    let builder = builder.with_root_certificates(roots);
    let Some(ClientFiles { certificate, key }) = &files.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| {
        garbled(key, &error, "name a PEM file with a private key that is not encrypted")
    })?;
    builder.with_client_auth_cert(chain, private).map_err(|error| {
        let problem = format!("does not fit {}: {error}", certificate.path.display());
        bad(key, problem, "name the key that belongs to the certificate")
    })
}

/// A configuration for http:// endpoints, which never secure anything.
pub(super) fn none() -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// The authorities that this machine trusts; those that rustls cannot use are left out.
fn system_roots() -> Result<RootCertStore, ClientError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "none found".into(), ToString::to_string);
        return Err(ClientError::NoRoots { why });
    }
    Ok(roots)
}

fn roots_of(file: &NamedFile) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| {
            bad(file, format!("holds what is no certificate: {error}"), CERTIFICATES)
        })?;
    }
    Ok(roots)
}

const CERTIFICATES: &str = "name a PEM file with certificates (-----BEGIN CERTIFICATE-----)";

/// At least one.
fn certificates(file: &NamedFile) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let certificates = CertificateDer::pem_slice_iter(&read(file)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| garbled(file, &error, CERTIFICATES))?;
    if certificates.is_empty() {
        return Err(garbled(file, &PemError::NoItemsFound, CERTIFICATES));
    }
    Ok(certificates)
}

fn read(file: &NamedFile) -> Result<Vec<u8>, ClientError> {
    let remedy = "name a file that flowend may read";
    let cannot = |error: io::Error| bad(file, format!("cannot be read: {error}"), remedy);
    let length = std::fs::metadata(&file.path).map_err(cannot)?.len();
    if length > MAX_FILE {
        return Err(bad(file, format!("is too large, {length} bytes"), CERTIFICATES));
    }
    std::fs::read(&file.path).map_err(cannot)
}

/// The library's own words would repeat lines of the file, which may be a key.
fn garbled(file: &NamedFile, error: &PemError, remedy: &'static str) -> ClientError {
    let problem = match error {
        PemError::NoItemsFound => "holds nothing of the kind that is needed",
        PemError::MissingSectionEnd { .. } => "is cut short: an END line is missing",
        PemError::Base64Decode(_) => "is garbled: a section is no base64",
        _ => "is no PEM",
    };
    bad(file, problem.into(), remedy)
}

fn bad(file: &NamedFile, problem: String, remedy: &'static str) -> ClientError {
    let NamedFile { origin, key, path } = file;
    ClientError::File {
        origin: origin.clone(),
        key: key.clone(),
        path: path.display().to_string(),
        problem,
        remedy,
    }
}

/// What to do about a handshake that failed, where one is known to have.
pub(super) fn remedy(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    match rustls_error(error)? {
        rustls::Error::InvalidCertificate(why) => Some(match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the receiver's certificate has expired: renew it there, or correct this machine's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the receiver's certificate is not valid yet: correct this machine's clock"
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the receiver's certificate is not trusted: name the authority that issued it in ca_file"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the receiver's certificate is for another name: use a name that it holds in the endpoint"
            }
            _ => "the receiver's certificate cannot be accepted",
        }),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::HandshakeFailure
            | AlertDescription::AccessDenied,
        ) => Some(
            "the receiver does not accept flowend's certificate, or misses one: see \
             client_certificate_file and client_key_file",
        ),
        rustls::Error::InvalidMessage(_) => {
            Some("the receiver does not speak TLS: is the endpoint http:// rather than https://?")
        }
        _ => None,
    }
}

/// The TLS library's own error among the causes. `io::Error` hides the one it holds from `source`.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = held.and_then(|held| rustls_error(held)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}
