//! The start-up message and authentication
//! (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP>).

use bytes::BytesMut;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::frontend,
};

use super::{
    Connection, Purpose, buffer::ReceiveBuffer, connection::unexpected, fields::ErrorFields,
    transport::Transport,
};
use crate::{
    model::PostgresEndpoint,
    postgres::{
        Error,
        session::{PINNED_SETTINGS, WITHOUT_TRANSACTION_TIMEOUT, within_connect_timeout},
    },
};

/// How far a SCRAM exchange is.
enum Scram {
    NotBegun,
    /// We have sent the first message.
    Begun(ScramSha256),
    /// The server has proved that it knows the password too.
    Proved,
}

impl Connection {
    /// Connects and logs in, with the same settings pinned as a session has.
    ///
    /// # Errors
    /// [`Error`]: no connection within 10 s, TLS, authentication, or the server's error.
    pub async fn connect(
        endpoint: &PostgresEndpoint,
        application_name: &str,
        purpose: Purpose,
    ) -> Result<Connection, Error> {
        within_connect_timeout(endpoint, async {
            let transport = Transport::connect(endpoint, purpose).await?;
            let mut connection =
                Connection { transport, buffer: ReceiveBuffer::new(), out: BytesMut::new(), idle: false };
            log_in(&mut connection, endpoint, application_name, purpose).await?;
            connection.idle = true;
            connection.query(WITHOUT_TRANSACTION_TIMEOUT).await?;
            Ok(connection)
        })
        .await
    }
}

/// Authenticates and reads to where the server waits for a statement.
async fn log_in(
    connection: &mut Connection,
    endpoint: &PostgresEndpoint,
    application_name: &str,
    purpose: Purpose,
) -> Result<(), Error> {
    let mut parameters = vec![
        ("user", endpoint.username.as_str()),
        ("database", endpoint.database.as_str()),
        ("application_name", application_name),
        ("client_encoding", "UTF8"),
    ];
    if purpose == Purpose::Replication {
        parameters.push(("replication", "database"));
    }
    parameters.extend(PINNED_SETTINGS);
    frontend::startup_message(parameters, &mut connection.out)
        .map_err(|_| Error::Protocol("a user, database or application name contains a NUL byte".into()))?;
    connection.flush().await?;
    let mut scram = Scram::NotBegun;
    loop {
        let frame = connection.next_frame().await?;
        let body = connection.buffer.slice(frame.body.clone());
        match frame.tag {
            b'R' => {
                let body = body.to_vec();
                authenticate(connection, endpoint, &mut scram, &body).await?;
            }
            b'E' => return Err(ErrorFields::parse(body).into_log_in_error(&endpoint.username)),
            // The key to cancel with, and the protocol options that the server lacks: neither is used.
            b'K' | b'v' => {}
            b'Z' => return Ok(()),
            tag => return Err(unexpected(tag, "authentication")),
        }
    }
}

/// Answers one authentication request. Its number and data are in `body`.
async fn authenticate(
    connection: &mut Connection,
    endpoint: &PostgresEndpoint,
    scram: &mut Scram,
    body: &[u8],
) -> Result<(), Error> {
    let refused = |message: &str| refused(endpoint, message);
    let Some((request, data)) = body.split_first_chunk() else {
        return Err(Error::Protocol("an authentication request without a number".into()));
    };
    let password = endpoint.password.expose().as_bytes();
    let out = &mut connection.out;
    match i32::from_be_bytes(*request) {
        0 if matches!(scram, Scram::Begun(_)) => {
            return Err(refused(
                "the server ended the SCRAM exchange without proving that it knows the password",
            ));
        }
        0 => return Ok(()),
        3 if !connection.transport.is_encrypted() => {
            return Err(refused(
                "the server asks for the password in clear text over a connection without TLS; set tls.mode, or scram-sha-256 in pg_hba.conf",
            ));
        }
        3 => frontend::password_message(password, out),
        5 => {
            let salt = *data.first_chunk().ok_or_else(|| refused("the server sent no md5 salt"))?;
            let hash = md5_hash(endpoint.username.as_bytes(), password, salt);
            frontend::password_message(hash.as_bytes(), out)
        }
        request @ 10..=12 => match scram.answer(request, data, endpoint)? {
            Some(Answer::Initial(answer)) => frontend::sasl_initial_response(SCRAM_SHA_256, &answer, out),
            Some(Answer::Following(answer)) => frontend::sasl_response(&answer, out),
            None => return Ok(()),
        },
        other => {
            return Err(refused(&format!(
                "the server asks for authentication method {other}, which is not supported; use scram-sha-256 in pg_hba.conf"
            )));
        }
    }
    .map_err(|_| refused("the password contains a NUL byte"))?;
    connection.flush().await
}

fn refused(endpoint: &PostgresEndpoint, message: &str) -> Error {
    Error::Authentication { username: endpoint.username.clone(), message: message.to_owned() }
}

/// A message of ours in a SCRAM exchange.
enum Answer {
    Initial(Vec<u8>),
    Following(Vec<u8>),
}

impl Scram {
    /// Answers one request of the exchange; `None` when it is complete.
    fn answer(
        &mut self,
        request: i32,
        data: &[u8],
        endpoint: &PostgresEndpoint,
    ) -> Result<Option<Answer>, Error> {
        match (request, std::mem::replace(self, Scram::NotBegun)) {
            (10, _) => {
                if !data.split(|&byte| byte == 0).any(|name| name == SCRAM_SHA_256.as_bytes()) {
                    return Err(refused(endpoint, "the server offers no SCRAM-SHA-256"));
                }
                let password = endpoint.password.expose().as_bytes();
                let exchange = ScramSha256::new(password, ChannelBinding::unsupported());
                let answer = exchange.message().to_vec();
                *self = Scram::Begun(exchange);
                Ok(Some(Answer::Initial(answer)))
            }
            (11, Scram::Begun(mut exchange)) => {
                exchange.update(data).map_err(|error| refused(endpoint, &error.to_string()))?;
                let answer = exchange.message().to_vec();
                *self = Scram::Begun(exchange);
                Ok(Some(Answer::Following(answer)))
            }
            (12, Scram::Begun(mut exchange)) => {
                exchange.finish(data).map_err(|error| refused(endpoint, &error.to_string()))?;
                *self = Scram::Proved;
                Ok(None)
            }
            _ => Err(Error::Protocol("a SCRAM message out of order".into())),
        }
    }
}
