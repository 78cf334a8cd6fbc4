//! Who is let in besides having a certificate: the deny-list, and how many connections one identity may hold.
//!
//! Lives here: the gate that every listener of a process shares. Lives elsewhere: chain, time and use of a
//! certificate (`tls`), what an identity may do (whoever serves it), what was denied (the vault's store).
//!
//! Invariant: from the moment that an identity is denied, no connection of it is let in, and those that
//! stand are ended by whoever holds their [`Pass`]. Short lives of certificates do the rest where the
//! deny-list does not reach.

use crate::ca::CLOCK_TOLERANCE;
use crate::identity::{Identity, IdentityError};
use continuum_model::time::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Connections that one identity may hold at a listener's process at once. A console has one, an agent two;
/// a script that leaks them is stopped here and takes nobody else along.
pub const CONNECTIONS_PER_IDENTITY_MAX: usize = 256;

/// What a certificate says of its holder, once it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// Who.
    pub identity: Identity,
    /// The certificate's serial number, as in the certificate.
    pub serial: Vec<u8>,
    /// When it was issued, to the second.
    pub issued: Timestamp,
    /// When it ends.
    pub ends: Timestamp,
}

impl Presented {
    /// Reads a certificate that was already verified against the vault's CA.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let identity = Identity::of_certificate(der)?;
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        let at = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_micros(time.timestamp().saturating_mul(1_000_000))
        };
        Ok(Self {
            identity,
            serial: certificate.raw_serial().to_vec(),
            // The authority begins every validity this much before it issues.
            issued: at(certificate.validity().not_before).plus(CLOCK_TOLERANCE),
            ends: at(certificate.validity().not_after),
        })
    }
}

/// The gate. Clones are the same gate.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    gate: Arc<Mutex<Gate>>,
}

#[derive(Debug, Default)]
struct Gate {
    denied: HashMap<Identity, Timestamp>,
    serials: HashSet<Vec<u8>>,
    open: HashMap<Identity, Vec<Open>>,
    next: u64,
}

impl Gate {
    fn denies(&self, presented: &Presented) -> bool {
        self.denied.get(&presented.identity).is_some_and(|until| presented.issued <= *until)
            || self.serials.contains(&presented.serial)
    }
}

#[derive(Debug)]
struct Open {
    number: u64,
    serial: Vec<u8>,
    issued: Timestamp,
    ended: CancellationToken,
}

/// Why somebody with a good certificate is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    /// Its certificate was revoked.
    #[error("its certificate was revoked: it must be enrolled again with a new token")]
    Revoked,
    /// It holds too many connections.
    #[error(
        "it holds {CONNECTIONS_PER_IDENTITY_MAX} connections already: close some, or wait until they end"
    )]
    TooMany,
}

impl Peers {
    /// Denies every certificate of `identity` that was issued at or before `until`. One that is issued later,
    /// for a new token, is good again. Connections that stand are ended.
    pub fn deny(&self, identity: &Identity, until: Timestamp) {
        let mut gate = self.gate();
        let moment = gate.denied.entry(identity.clone()).or_insert(until);
        *moment = (*moment).max(until);
        for open in gate.open.get(identity).into_iter().flatten().filter(|open| open.issued <= until) {
            open.ended.cancel();
        }
    }

    /// Denies one certificate, by its serial number. Its connections are ended.
    pub fn deny_serial(&self, serial: &[u8]) {
        let mut gate = self.gate();
        gate.serials.insert(serial.to_vec());
        gate.open
            .values()
            .flatten()
            .filter(|open| open.serial == serial)
            .for_each(|open| open.ended.cancel());
    }

    /// How many connections an identity holds.
    pub fn connections(&self, identity: &Identity) -> usize {
        self.gate().open.get(identity).map_or(0, Vec::len)
    }

    /// Whether a certificate was revoked.
    pub fn denies(&self, presented: &Presented) -> bool {
        self.gate().denies(presented)
    }

    /// Lets a connection in. It counts until the pass is dropped.
    pub fn admit(&self, presented: &Presented) -> Result<Pass, Barred> {
        let mut gate = self.gate();
        if gate.denies(presented) {
            return Err(Barred::Revoked);
        }
        let number = gate.next;
        gate.next += 1;
        let open = gate.open.entry(presented.identity.clone()).or_default();
        if open.len() >= CONNECTIONS_PER_IDENTITY_MAX {
            return Err(Barred::TooMany);
        }
        let ended = CancellationToken::new();
        open.push(Open {
            number,
            serial: presented.serial.clone(),
            issued: presented.issued,
            ended: ended.clone(),
        });
        Ok(Pass { peers: self.clone(), identity: presented.identity.clone(), number, ended })
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One admitted connection. Held as long as the connection is.
#[derive(Debug)]
pub struct Pass {
    peers: Peers,
    identity: Identity,
    number: u64,
    ended: CancellationToken,
}

impl Pass {
    /// Cancelled when the certificate behind the connection is revoked.
    pub const fn revoked(&self) -> &CancellationToken {
        &self.ended
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut gate = self.peers.gate();
        if let Some(open) = gate.open.get_mut(&self.identity) {
            open.retain(|open| open.number != self.number);
            if open.is_empty() {
                gate.open.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;
    use continuum_model::id::VaultId;

    fn presented(id: &str, issued: i64, serial: u8) -> Presented {
        let identity = Identity { vault: VaultId::from_bytes([1; 16]), role: Role::Agent, id: id.into() };
        let at = Timestamp::from_micros;
        Presented { identity, serial: vec![serial], issued: at(issued), ends: at(issued + 1_000) }
    }

    #[test]
    fn a_denied_identity_is_out_at_once_and_only_a_newer_certificate_opens_again() {
        let peers = Peers::default();
        let (old, other) = (presented("a", 10, 1), presented("b", 10, 2));
        let (standing, bystander) = (peers.admit(&old).unwrap(), peers.admit(&other).unwrap());
        peers.deny(&old.identity, Timestamp::from_micros(10));
        assert!(standing.revoked().is_cancelled() && !bystander.revoked().is_cancelled());
        assert_eq!(peers.admit(&old).err(), Some(Barred::Revoked));
        // An older denial that is read back later does not open what a newer one closed.
        peers.deny(&old.identity, Timestamp::from_micros(3));
        assert_eq!(peers.admit(&old).err(), Some(Barred::Revoked));
        assert!(peers.admit(&presented("a", 11, 3)).is_ok());
    }

    #[test]
    fn one_certificate_is_denied_by_its_serial() {
        let peers = Peers::default();
        let standing = peers.admit(&presented("a", 10, 7)).unwrap();
        peers.deny_serial(&[7]);
        assert!(standing.revoked().is_cancelled());
        assert_eq!(peers.admit(&presented("a", 10, 7)).err(), Some(Barred::Revoked));
        assert!(peers.admit(&presented("a", 10, 8)).is_ok());
    }

    #[test]
    fn one_identity_cannot_take_all_connections_and_gets_its_places_back() {
        let peers = Peers::default();
        let passes: Vec<_> =
            (0..CONNECTIONS_PER_IDENTITY_MAX).map(|_| peers.admit(&presented("a", 1, 1)).unwrap()).collect();
        assert_eq!(peers.admit(&presented("a", 1, 1)).err(), Some(Barred::TooMany));
        assert!(peers.admit(&presented("b", 1, 2)).is_ok(), "others are not touched");
        drop(passes);
        assert_eq!(peers.connections(&presented("a", 1, 1).identity), 0);
        assert!(peers.admit(&presented("a", 1, 1)).is_ok());
    }
}
