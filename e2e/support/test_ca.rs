//! Valid and invalid certificates of servers and clients.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};

/// An authority that signs certificates.
#[derive(Debug)]
pub struct TestCa(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
#[derive(Debug)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl TestCa {
    /// Creates an authority of this name.
    pub fn new(name: &str) -> TestCa {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        TestCa(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// For a server of these names or addresses.
    pub fn server(&self, names: &[&str]) -> Identity {
        self.sign("server", names, ExtendedKeyUsagePurpose::ServerAuth, 2090)
    }

    /// For a server of these names or addresses, expired years ago.
    pub fn expired_server(&self, names: &[&str]) -> Identity {
        self.sign("server", names, ExtendedKeyUsagePurpose::ServerAuth, 2002)
    }

    /// For a client of this name.
    pub fn client(&self, common_name: &str) -> Identity {
        self.sign(common_name, &[], ExtendedKeyUsagePurpose::ClientAuth, 2090)
    }

    /// With a server's names, but issued for client authentication.
    pub fn client_of_names(&self, names: &[&str]) -> Identity {
        self.sign("server", names, ExtendedKeyUsagePurpose::ClientAuth, 2090)
    }

    fn sign(
        &self,
        common_name: &str,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        last_year: i32,
    ) -> Identity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages.push(usage);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Identity {
    /// Writes the files for `e2e/tools/servers --tls`: the server has this identity and trusts clients of
    /// `clients`.
    pub fn write_files(&self, folder: &Path, clients: &TestCa) {
        fs::write(folder.join("server.crt"), &self.certificate).unwrap();
        fs::write(folder.join("server.key"), &self.key).unwrap();
        fs::write(folder.join("ca.crt"), clients.pem()).unwrap();
    }
}
