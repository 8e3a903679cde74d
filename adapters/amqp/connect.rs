//! Makes one connection: address, encryption, login, and how the bus introduces itself.

use std::io;
use std::sync::{Arc, OnceLock};

use async_compat::Compat;
use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;

use crate::error::{describe, mend};
use crate::settings::{Settings, TlsFiles};

/// Connects and logs in; what is wrong comes in words. Whatever it is, it is over within
/// `settings.timeout`.
pub(crate) async fn connect(settings: &Arc<Settings>, name: String) -> Result<Connection, String> {
    let no_runtime = |error: lapin::Error| describe(&error);
    let runtime = lapin::runtime::default_runtime().map_err(no_runtime)?;
    let limit = settings.timeout;
    let for_stream = settings.clone();
    let socket: Arc<OnceLock<std::net::TcpStream>> = Arc::default();
    let shared = socket.clone();
    let open = Connection::connector(
        uri(settings),
        runtime,
        async move |_, _| {
            let made = stream(&for_stream, &shared);
            match tokio::time::timeout(limit, made).await {
                Ok(made) => made.map_err(lapin::Error::from),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        },
        properties(name),
    );
    let failed = |what: &str| format!("no connection to {}: {what}", settings.address);
    match tokio::time::timeout(limit, open).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(failed(&format!("{}{}", describe(&error), mend(&error)))),
        Err(_) => {
            // lapin would wait for the broker's answer, with a thread, for as long as the broker
            // keeps silent.
            if let Some(socket) = socket.get() {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            Err(failed(&format!("no answer within {limit:?}")))
        }
    }
}

/// The stream, and a second handle of its socket.
async fn stream(
    settings: &Settings,
    socket: &OnceLock<std::net::TcpStream>,
) -> io::Result<AsyncTcpStream<Compat<TcpStream>>> {
    let address = &settings.address;
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let _ = socket.set(stream.try_clone()?);
    let stream = AsyncTcpStream::Plain(Compat::new(TcpStream::from_std(stream)?));
    if !address.secure {
        return Ok(stream);
    }
    stream
        .into_rustls(&connector(&settings.tls)?, &address.host)
        .await
}

fn uri(settings: &Settings) -> AMQPUri {
    let address = &settings.address;
    AMQPUri {
        scheme: match address.secure {
            true => AMQPScheme::AMQPS,
            false => AMQPScheme::AMQP,
        },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: settings.user.clone(),
                password: settings.password.0.clone(),
            },
            host: address.host.clone(),
            port: address.port,
        },
        vhost: address.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(settings.heartbeat.as_secs().min(u64::from(u16::MAX)) as u16),
            ..AMQPQueryString::default()
        },
    }
}

fn properties(name: String) -> ConnectionProperties {
    ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "xbus".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
}

fn unreadable(path: &std::path::Path, error: &PemError) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn certificates(path: &std::path::Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, PemError> =
        CertificateDer::pem_file_iter(path).and_then(|found| found.collect());
    let all = all.map_err(|error| unreadable(path, &error))?;
    match all.is_empty() {
        true => Err(io::Error::other(format!(
            "there is no certificate in {}",
            path.display()
        ))),
        false => Ok(all),
    }
}

/// With `ca` only what it signed is believed, else what the system believes.
fn connector(files: &TlsFiles) -> io::Result<RustlsConnector> {
    let mut config = match &files.ca {
        Some(_) => RustlsConnectorConfig::default(),
        None => RustlsConnectorConfig::new_with_native_certs()?,
    };
    if let Some(ca) = &files.ca {
        config.add_parsable_certificates(certificates(ca)?);
    }
    match &files.identity {
        None => config.connector_with_no_client_auth(),
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
            config.connector_with_single_cert(certificates(cert)?, key)
        }
    }
}
