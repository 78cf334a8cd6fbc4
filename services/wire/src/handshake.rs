//! Why a handshake failed: one reason each, in words, and what follows from it.
//!
//! The two sides learn different things. Who verifies knows exactly what is wrong; the other side is told by
//! an alert, and adds what it knows of its own certificate. Where validity is the trouble each side states its
//! own clock, because often it is a clock that is wrong.

use crate::identity::IdentityError;
use crate::peers::Barred;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock};
use rustls::{AlertDescription as Alert, CertificateError as Cert, Error as Tls};
use std::io;

/// What went wrong before anything was said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer has no certificate.
    #[error("the peer showed no certificate: it must be enrolled first")]
    NoCertificate,
    /// The peer's certificate is over.
    #[error("the peer's certificate ended at {ended}; the clock here says {here}")]
    Expired {
        /// When.
        ended: Timestamp,
        /// Our clock.
        here: Timestamp,
    },
    /// The peer's certificate is for later.
    #[error("the peer's certificate is valid from {begins} on; the clock here says {here}")]
    NotYetValid {
        /// From when.
        begins: Timestamp,
        /// Our clock.
        here: Timestamp,
    },
    /// Issued by somebody else.
    #[error("the peer's certificate is of another authority, not of this vault")]
    Foreign,
    /// Claims our authority, but was not signed by it.
    #[error("the peer's certificate was not signed by the authority that it names: it is forged or damaged")]
    Forged,
    /// For another use.
    #[error("the peer's certificate is not for this use: an operator only dials, and never answers")]
    Purpose,
    /// An algorithm that is not accepted.
    #[error("the peer's certificate or signature uses an algorithm that is too weak or unknown here")]
    Weak,
    /// The certificate's shape.
    #[error("the peer's certificate cannot be used: {0}")]
    Unusable(String),
    /// It names nobody.
    #[error(transparent)]
    Nameless(#[from] IdentityError),
    /// A good certificate that is not let in.
    #[error("{who}: {why}")]
    Barred {
        /// Whose.
        who: String,
        /// Why.
        why: Barred,
    },
    /// Not who was expected.
    #[error("{found} answered where {expected} was expected")]
    WrongPeer {
        /// Who it is.
        found: String,
        /// Who it should be.
        expected: String,
    },
    /// It knows TLS 1.2 at best.
    #[error("the peer offers no TLS 1.3, and nothing older is spoken here")]
    OldTls,
    /// It does not offer our protocol.
    #[error(
        "the peer speaks another protocol inside TLS: something else listens there, or its version differs"
    )]
    Protocol,
    /// Not TLS at all.
    #[error("what arrived is not TLS: something else talks to this port")]
    NotTls,
    /// The other side turned us down.
    #[error("the other side refuses our certificate: it says {alert}{own}")]
    RefusedUs {
        /// Its alert.
        alert: String,
        /// What we know of our certificate.
        own: String,
    },
    /// Too slow.
    #[error("handshake not finished in 10 s")]
    Deadline,
    /// The link broke.
    #[error("the connection broke in the handshake: {0}")]
    Broken(String),
    /// Anything else that TLS may say.
    #[error("TLS failed: {0}")]
    Other(String),
}

impl HandshakeError {
    /// Reads what a TLS stream reports.
    pub fn of_io(error: &io::Error) -> Self {
        match tls_error(error) {
            Some(error) => Self::of_tls(error),
            None => Self::Broken(shown(&error.to_string())),
        }
    }

    /// Reads what TLS reports.
    pub fn of_tls(error: &Tls) -> Self {
        let at = |time: &rustls::pki_types::UnixTime| {
            Timestamp::from_micros(
                i64::try_from(time.as_secs()).unwrap_or(i64::MAX).saturating_mul(1_000_000),
            )
        };
        match error {
            Tls::NoCertificatesPresented => Self::NoCertificate,
            Tls::InvalidCertificate(error) => match error {
                Cert::ExpiredContext { time, not_after } => {
                    Self::Expired { ended: at(not_after), here: at(time) }
                }
                Cert::NotValidYetContext { time, not_before } => {
                    Self::NotYetValid { begins: at(not_before), here: at(time) }
                }
                Cert::UnknownIssuer => Self::Foreign,
                Cert::BadSignature => Self::Forged,
                Cert::Revoked => Self::Barred { who: "the peer".into(), why: Barred::Revoked },
                Cert::InvalidPurpose | Cert::InvalidPurposeContext { .. } => Self::Purpose,
                Cert::UnsupportedSignatureAlgorithmContext { .. }
                | Cert::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Self::Weak,
                other => Self::Unusable(shown(&other.to_string())),
            },
            Tls::PeerIncompatible(rustls::PeerIncompatible::NoSignatureSchemesInCommon) => Self::Weak,
            Tls::PeerIncompatible(_) | Tls::AlertReceived(Alert::ProtocolVersion) => Self::OldTls,
            Tls::NoApplicationProtocol | Tls::AlertReceived(Alert::NoApplicationProtocol) => Self::Protocol,
            Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } => Self::NotTls,
            Tls::AlertReceived(alert) if about_certificate(*alert) => {
                Self::RefusedUs { alert: words(*alert), own: String::new() }
            }
            Tls::General(reason) => Self::Unusable(shown(reason)),
            other => Self::Other(shown(&other.to_string())),
        }
    }

    /// Adds what we know of our own certificate, where the other side refused it.
    #[must_use]
    pub fn about_us(mut self, issued: Timestamp, ends: Timestamp) -> Self {
        if let Self::RefusedUs { own, .. } = &mut self {
            let here = SystemClock::default().wall();
            *own = format!("; ours is valid from {issued} to {ends}, and the clock here says {here}");
        }
        self
    }

    /// Whether waiting can mend it.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Deadline | Self::Broken(_) | Self::NotTls | Self::Other(_))
    }

    /// For people, with where it happened.
    pub fn fault(&self, address: &str) -> Fault {
        let (class, code, remedy) = match self {
            Self::Deadline | Self::Broken(_) | Self::NotTls | Self::Other(_) => (
                FaultClass::NotConnected,
                "tls.broken",
                "nothing: it is tried again; see address, port and the link between the two when it stays",
            ),
            Self::Expired { .. } | Self::NotYetValid { .. } => (
                FaultClass::Refused,
                "tls.refused",
                "compare the clocks of both sides; if they agree, enrol the side whose certificate ended again with a new token",
            ),
            Self::WrongPeer { .. } | Self::Foreign | Self::Forged | Self::Nameless(_) => (
                FaultClass::Refused,
                "tls.refused",
                "make sure that the address is the right one and that both sides are enrolled in the same vault",
            ),
            Self::Protocol | Self::OldTls => (
                FaultClass::Refused,
                "tls.refused",
                "make sure that address and port are the right ones, and that both sides are up to date",
            ),
            Self::NoCertificate
            | Self::Purpose
            | Self::Weak
            | Self::Unusable(_)
            | Self::Barred { .. }
            | Self::RefusedUs { .. } => (
                FaultClass::Refused,
                "tls.refused",
                "see `continuum doctor`; a certificate that ended or was revoked needs a new enrolment",
            ),
        };
        Fault::new(class, code, format!("no trusted connection to {}: {self}", shown(address)))
            .affects("this connection")
            .spares("everything that is already running")
            .remedy(remedy)
    }
}

/// The TLS error inside an error of a stream, a channel or a call: it decides whether a retry makes sense.
pub fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Tls> {
    find(error)
}

/// A fault that a connector of ours put into an error.
pub(crate) fn carried_fault<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Fault> {
    find(error)
}

fn find<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // The source of an I/O error is the source of what it carries, not what it carries.
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

const fn about_certificate(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::CertificateRequired
    )
}

fn words(alert: Alert) -> String {
    let words = match alert {
        Alert::CertificateExpired => "it is not valid at this time by its clock",
        Alert::UnknownCA => "it is of another authority",
        Alert::CertificateRequired | Alert::NoCertificate => "there is none",
        Alert::UnsupportedCertificate => "it is not for this use",
        Alert::CertificateRevoked => "it was revoked, and must be enrolled again with a new token",
        other => return format!("{other:?}"),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_however_deep_it_is_wrapped() {
        let inner = io::Error::other(Tls::AlertReceived(Alert::UnknownCA));
        let outer = io::Error::other(io::Error::other(inner));
        let reason = HandshakeError::of_io(&outer);
        assert!(matches!(reason, HandshakeError::RefusedUs { .. }), "{reason}");
        let text = reason.about_us(Timestamp::default(), Timestamp::default()).to_string();
        assert!(text.contains("another authority") && text.contains("the clock here says"), "{text}");
        assert!(HandshakeError::of_io(&io::ErrorKind::ConnectionReset.into()).is_passing());
    }
}
