//! Any bytes given to the unpickler end in an object graph or an error.
#![no_main]

use cosyvoice::checkpoint::pickle::Pickle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(pickle) = Pickle::read(bytes) {
        let _ = pickle.get(pickle.root());
    }
});
