//! What was brought here by other means is a beginning that nothing believes.

mod source;

use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, Sequence};
use continuum_replica::medium::Simulated;
use continuum_replica::seed::{SeedError, seed};
use continuum_replica::{Limits, ReplicaError};
use source::{SIZES, Source, open_limited};
use std::io::{self, Read};

/// Fails after some bytes, in odd pieces before that.
struct Torn(Vec<u8>, usize);

impl Read for Torn {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.1 == 0 {
            return Err(io::Error::other("the cable was pulled"));
        }
        let got = out.len().min(777).min(self.1);
        let from = self.0.len() - self.1;
        out[..got].copy_from_slice(&self.0[from..from + got]);
        self.1 -= got;
        Ok(got)
    }
}

#[test]
fn nothing_of_a_seed_can_be_brought_up_until_a_source_says_what_is_right() {
    let world = Simulated::default();
    let store = open_limited(world.clone(), Limits::default());
    let image: Vec<u8> = (0..SIZES[0]).map(|at| (at / 4096 % 5 * 50) as u8).collect();
    // Shorter than its disk, and longer: what is too much is left out.
    let longer: Vec<u8> = (0..SIZES[1] + 5000).map(|at| (at % 251) as u8).collect();
    let images: Vec<(DiskIndex, Box<dyn Read>)> = vec![
        (DiskIndex(0), Box::new(io::Cursor::new(image.clone()))),
        (DiskIndex(1), Box::new(io::Cursor::new(longer.clone()))),
    ];
    let now = Timestamp::from_micros(500_000);
    let taken = seed(&store, images, now, &mut |_| true).expect("it is taken in");
    assert!(taken > 0);
    let state = store.state();
    assert_eq!((state.newest_legal, state.oldest_legal, state.points), (None, None, 0));
    assert!((0..=state.last.sequence.0).all(|at| store.open_view(Sequence(at)).is_err()));
    // What it holds is known by its sums, to be compared.
    while !store.tend_digests(Bytes(1 << 20)).expect("it is summed").done {}
    let again = seed(&store, Vec::new(), now, &mut |_| true);
    assert!(matches!(again, Err(SeedError::NotEmpty)), "{again:?}");
    drop(store);
    let store = open_limited(world, Limits::default());
    assert_eq!(store.state().last, state.last);

    // One that breaks off is kept as far as it came, and no more is made of it.
    let store_of_torn = open_limited(Simulated::default(), Limits::default());
    let torn: Vec<(DiskIndex, Box<dyn Read>)> = vec![(DiskIndex(0), Box::new(Torn(image, 70_000)))];
    let failed = seed(&store_of_torn, torn, now, &mut |_| true);
    assert!(matches!(failed, Err(SeedError::Image { .. })), "{failed:?}");
    assert_eq!(store_of_torn.state().newest_legal, None);

    // A source of another history is refused what does not follow, as ever.
    let mut source = Source::new(3);
    source.frame(3);
    assert!(matches!(store.append(&source.frames), Err(ReplicaError::Chain(_))));
    assert_eq!(store.state().newest_legal, None);
}
