//! TLS client settings for both databases.

use std::{error::Error as StdError, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{self, CryptoProvider},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::ParsedCertificate,
};

use crate::{
    fault::{causes, innermost},
    model::{TlsMode, TlsSettings},
};

/// TLS settings that can't be used. Messages name the field and the fix.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA certificates are no PEM.
    #[error("tls.caSecretRef does not hold PEM certificates: {0}")]
    CaPem(#[source] pem::Error),
    /// The CA text has no certificate in it.
    #[error(
        "tls.caSecretRef holds no certificate; put the CA's PEM certificate (-----BEGIN CERTIFICATE-----) there"
    )]
    CaEmpty,
    /// A CA certificate can't be used as a trust anchor.
    #[error("tls.caSecretRef holds a certificate that cannot be a trust anchor: {0}")]
    CaCertificate(#[source] rustls::Error),
    /// The system has no CA certificates.
    #[error(
        "tls.caSecretRef is not set and the system has no CA certificates ({0}); set it, or install the system's CA certificates"
    )]
    NoSystemRoots(String),
    /// The client certificate is no PEM.
    #[error("tls.clientCertificateSecretRef: tls.crt does not hold PEM certificates: {0}")]
    ClientCertificatePem(#[source] pem::Error),
    /// The client's private key is no PEM.
    #[error("tls.clientCertificateSecretRef: tls.key does not hold a PEM private key: {0}")]
    ClientKeyPem(#[source] pem::Error),
    /// Client certificate and key don't fit together or are of an unknown kind.
    #[error("tls.clientCertificateSecretRef: the certificate and its key cannot be used: {0}")]
    ClientIdentity(#[source] rustls::Error),
    /// The TLS library refuses its own defaults: a defect.
    #[error("TLS cannot be set up: {0}")]
    Provider(#[source] rustls::Error),
}

/// The client configuration for `settings`: `Require` accepts any certificate, `VerifyCa` any host name,
/// `VerifyFull` neither. [`TlsMode::Disable`] is the caller's to handle; asked for it, this is as strict as
/// can be.
///
/// # Errors
/// [`TlsError`] where the CA or the client certificate can't be used.
pub fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?;
    let builder = match settings.mode {
        TlsMode::Require => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { provider, roots: None }))
        }
        TlsMode::VerifyCa => {
            let roots = Some(roots(settings)?);
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { provider, roots }))
        }
        TlsMode::VerifyFull | TlsMode::Disable => builder.with_root_certificates(roots(settings)?),
    };
    let Some(identity) = &settings.client_identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(&identity.certificate_pem).map_err(TlsError::ClientCertificatePem)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes())
        .map_err(TlsError::ClientKeyPem)?;
    builder.with_client_auth_cert(chain, key).map_err(TlsError::ClientIdentity)
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect()
}

fn roots(settings: &TlsSettings) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(text) = &settings.ca_pem else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let errors: Vec<_> = system.errors.iter().map(ToString::to_string).collect();
            return Err(TlsError::NoSystemRoots(errors.join("; ")));
        }
        return Ok(roots);
    };
    for certificate in certificates(text).map_err(TlsError::CaPem)? {
        roots.add(certificate).map_err(TlsError::CaCertificate)?;
    }
    if roots.is_empty() { Err(TlsError::CaEmpty) } else { Ok(roots) }
}

/// Checks the chain up to `roots` (nothing when `None`) and no host name. That the server owns the
/// certificate's key is always checked.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    roots: Option<RootCertStore>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The innermost cause of `error` in words, with the fix where it is known.
pub fn explain(error: &(dyn StdError + 'static)) -> String {
    let fix = causes(error).find_map(|cause| match cause.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(reason) => certificate_fix(reason),
        rustls::Error::InvalidMessage(_) => Some("the server may speak plain text at this port"),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate,
        ) => Some("give a client certificate that the server accepts in tls.clientCertificateSecretRef"),
        _ => None,
    });
    let cause = innermost(error);
    match fix {
        Some(fix) => format!("{cause}; {fix}"),
        None => cause,
    }
}

/// Whether TLS failed because something was damaged on its way, in either direction: the next try may
/// succeed. What certificates and settings forbid, and a server that speaks plain text, is another kind of
/// error.
pub fn is_transmission_error(error: &(dyn StdError + 'static)) -> bool {
    use rustls::{AlertDescription as Alert, Error, InvalidMessage};
    causes(error).filter_map(|cause| cause.downcast_ref::<Error>()).any(|error| match error {
        Error::InvalidMessage(message) => !matches!(message, InvalidMessage::InvalidContentType),
        Error::DecryptError
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord => true,
        // What a server says whose own words, or ours, were damaged.
        Error::AlertReceived(alert) => matches!(
            alert,
            Alert::UnexpectedMessage
                | Alert::BadRecordMac
                | Alert::RecordOverflow
                | Alert::IllegalParameter
                | Alert::DecodeError
                | Alert::DecryptError
        ),
        _ => false,
    })
}

fn certificate_fix(reason: &CertificateError) -> Option<&'static str> {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            Some("put the CA that signed the server's certificate into tls.caSecretRef")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Some("renew the server's certificate or its CA")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Some(
            "use a host name that the server's certificate names, or tls.mode: VerifyCa to accept any name",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use rustls::{ClientConnection, ServerConfig, ServerConnection, server::WebPkiClientVerifier};

    use super::*;
    use crate::model::{ClientIdentity, Password};

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn ca() -> Ca {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A certificate for `name` that expired or not, and its key.
    fn leaf(ca: &Ca, name: &str, expired: bool) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_after = date_time_ymd(2020, 1, 1);
            params.not_before = date_time_ymd(2019, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
    }

    fn settings(mode: TlsMode, ca: Option<&Ca>) -> TlsSettings {
        TlsSettings { mode, ca_pem: ca.map(|ca| ca.pem()), client_identity: None }
    }

    /// Shakes hands with a server that shows `certificate` and wants one signed by `clients`, and sends a
    /// byte both ways.
    fn handshake(
        settings: &TlsSettings,
        host: &str,
        (certificate, key): &(String, String),
        clients: Option<&Ca>,
    ) -> Result<(), io::Error> {
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = roots(&TlsSettings { ca_pem: Some(ca.pem()), ..TlsSettings::default() }).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let server = builder.with_single_cert(certificates(certificate).unwrap(), key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut tls = ServerConnection::new(Arc::new(server)).unwrap();
            let mut stream = rustls::Stream::new(&mut tls, &mut stream);
            let mut byte = [0];
            stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte))
        });
        let mut stream = TcpStream::connect(address).unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let mut tls = ClientConnection::new(Arc::new(client_config(settings).unwrap()), name).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut stream);
        let result = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
        drop(serving.join());
        result
    }

    fn refusal(settings: &TlsSettings, host: &str, certificate: &(String, String)) -> String {
        let error = handshake(settings, host, certificate, None).unwrap_err();
        assert!(!is_transmission_error(&error), "{error}");
        explain(&error)
    }

    #[test]
    fn damage_is_distinguished_from_refusal() {
        use rustls::{AlertDescription, Error, InvalidMessage};
        let damaged = |error| is_transmission_error(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert!(damaged(Error::DecryptError));
        assert!(damaged(Error::AlertReceived(AlertDescription::BadRecordMac)));
        assert!(damaged(Error::InvalidMessage(InvalidMessage::MessageTooLarge)));
        assert!(!damaged(Error::InvalidMessage(InvalidMessage::InvalidContentType)));
        assert!(!damaged(Error::AlertReceived(AlertDescription::HandshakeFailure)));
        assert!(!damaged(Error::AlertReceived(AlertDescription::CertificateRequired)));
    }

    #[test]
    fn each_mode_checks_what_it_promises() {
        let (ours, other) = (ca(), ca());
        let certificate = leaf(&ours, "db.example", false);
        let accepted =
            |mode, ca, host| handshake(&settings(mode, Some(ca)), host, &certificate, None).is_ok();
        assert!(accepted(TlsMode::Require, &other, "elsewhere.example"));
        assert!(accepted(TlsMode::VerifyCa, &ours, "elsewhere.example"));
        assert!(!accepted(TlsMode::VerifyCa, &other, "db.example"));
        assert!(accepted(TlsMode::VerifyFull, &ours, "db.example"));
        assert!(!accepted(TlsMode::VerifyFull, &ours, "elsewhere.example"));
        assert!(!accepted(TlsMode::VerifyFull, &other, "db.example"));
        let by_address = leaf(&ours, "127.0.0.1", false);
        assert!(
            handshake(&settings(TlsMode::VerifyFull, Some(&ours)), "127.0.0.1", &by_address, None).is_ok()
        );
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let (ours, other) = (ca(), ca());
        let full = settings(TlsMode::VerifyFull, Some(&ours));
        let message = refusal(&full, "db.example", &leaf(&other, "db.example", false));
        assert!(
            message.ends_with("put the CA that signed the server's certificate into tls.caSecretRef"),
            "{message}"
        );
        let message = refusal(&full, "db.example", &leaf(&ours, "db.example", true));
        assert!(message.ends_with("renew the server's certificate or its CA"), "{message}");
        let message = refusal(&full, "db.example", &leaf(&ours, "other.example", false));
        assert!(message.ends_with("tls.mode: VerifyCa to accept any name"), "{message}");
    }

    #[test]
    fn shows_the_client_certificate() {
        let ours = ca();
        let server = leaf(&ours, "db.example", false);
        let mut settings = settings(TlsMode::VerifyFull, Some(&ours));
        assert!(handshake(&settings, "db.example", &server, Some(&ours)).is_err());
        let (certificate_pem, key_pem) = leaf(&ours, "client", false);
        settings.client_identity = Some(ClientIdentity { certificate_pem, key_pem: Password::new(key_pem) });
        handshake(&settings, "db.example", &server, Some(&ours)).unwrap();
    }

    #[test]
    fn wrong_settings_name_the_field() {
        let ours = ca();
        let error = |settings: &TlsSettings| client_config(settings).unwrap_err();
        let mut wrong = settings(TlsMode::VerifyFull, None);
        wrong.ca_pem = Some("not a certificate".into());
        assert!(matches!(error(&wrong), TlsError::CaEmpty));
        wrong.ca_pem = Some("-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n".into());
        assert!(matches!(error(&wrong), TlsError::CaPem(_)));
        wrong.ca_pem = Some("-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n".into());
        assert!(matches!(error(&wrong), TlsError::CaCertificate(_)));
        let (certificate, key) = leaf(&ours, "client", false);
        let (_, other_key) = leaf(&ours, "client", false);
        let identity = |certificate: &str, key: &str| TlsSettings {
            client_identity: Some(ClientIdentity {
                certificate_pem: certificate.to_owned(),
                key_pem: Password::new(key),
            }),
            ..settings(TlsMode::VerifyCa, Some(&ours))
        };
        assert!(client_config(&identity(&certificate, &key)).is_ok());
        assert!(matches!(error(&identity("", &key)), TlsError::ClientIdentity(_)));
        assert!(matches!(error(&identity(&certificate, "")), TlsError::ClientKeyPem(_)));
        assert!(matches!(error(&identity(&certificate, &other_key)), TlsError::ClientIdentity(_)));
    }
}
