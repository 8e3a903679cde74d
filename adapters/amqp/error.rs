//! What lapin and the broker say, in words for administrators.

use lapin::{Error, ErrorKind};

/// Whether the whole connection is gone, not only a channel.
pub(crate) fn is_connection_lost(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::IOError(_)
        | ErrorKind::RuntimeShutdownError(_)
        | ErrorKind::ParsingError(_)
        | ErrorKind::SerialisationError(_)
        | ErrorKind::InvalidConnectionState(_)
        | ErrorKind::MissingHeartbeatError => true,
        ErrorKind::ProtocolError(_) => error.is_amqp_hard_error(),
        _ => false,
    }
}

/// The code of AMQP 0-9-1 (section 1.2, constants) and the broker's text, where the broker closed
/// something.
pub(crate) fn reply(error: &Error) -> Option<(u16, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
        _ => None,
    }
}

/// An error in words: what happened, without a prefix that says so.
pub(crate) fn describe(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => {
            let text = error.get_message().as_str();
            format!("the broker says {} {text}", error.get_id())
        }
        ErrorKind::IOError(error) => match error.kind() {
            std::io::ErrorKind::ConnectionAborted => {
                String::from("the broker closed the connection")
            }
            _ => error.to_string(),
        },
        ErrorKind::MissingHeartbeatError => String::from("the broker was silent for too long"),
        ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannelState(..) => {
            String::from("it was closed")
        }
        ErrorKind::ChannelsLimitReached => String::from(
            "there are no more channels; raise the broker's 'channel_max', or use a second connection",
        ),
        _ => error.to_string(),
    }
}

/// How to mend what the broker refused, where that can be said; begins with "; ".
pub(crate) fn mend(error: &Error) -> &'static str {
    match reply(error) {
        Some((403, text)) if text.contains("Login was refused") => {
            "; check user and password of the connection"
        }
        Some((403, _)) => {
            "; give the user the permission at the broker (rabbitmqctl set_permissions)"
        }
        Some((530, text)) if text.contains("vhost") => {
            "; check the virtual host at the end of 'url', and that the user may use it"
        }
        _ => "",
    }
}
