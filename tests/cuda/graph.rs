//! Runs of launches that come again are replayed as graphs, and compute what the launches would.

use cosyvoice::backend::Memory;
use cosyvoice::cuda::Precision;

use super::{device, values};
use crate::ops::cases::values as seeded;

#[test]
fn what_comes_again_is_replayed_with_the_values_of_the_moment() {
    let Some(cuda) = device(Precision::F32) else {
        return;
    };
    let mut x = cuda.tensor(4, 3, &[0.0; 12]).unwrap();
    let (mut wide, mut twice) = (cuda.alloc(4, 6).unwrap(), cuda.alloc(8, 6).unwrap());
    for round in 0..5 {
        let input = seeded(round, 12);
        cuda.upload(&input, &mut x).unwrap();
        cuda.recorded(|| {
            cuda.concat_cols(&[&x, &x], &mut wide)?;
            cuda.upsample_rows(&wide, 2, &mut twice)
        })
        .unwrap();
        let expected: Vec<f32> = input
            .chunks(3)
            .flat_map(|r| [r, r, r, r].concat())
            .collect();
        assert_eq!(values(&*cuda, &twice), expected, "round {round}");
    }
    // Sent one by one, captured, and replayed from then on.
    assert_eq!(cuda.graph_counts(), (1, 3));
    // Other shapes are other launches.
    cuda.resize(&mut twice, 12, 6).unwrap();
    cuda.recorded(|| cuda.upsample_rows(&wide, 3, &mut twice))
        .unwrap();
    assert_eq!(cuda.graph_counts(), (1, 3));
}

#[test]
fn allocations_and_reads_in_between_see_all_that_came_before() {
    let Some(cuda) = device(Precision::F32) else {
        return;
    };
    let x = cuda.tensor(1, 3, &[1.0, 2.0, 3.0]).unwrap();
    for _ in 0..3 {
        let mut read = Vec::new();
        cuda.recorded(|| {
            let mut y = cuda.alloc(2, 3)?;
            cuda.upsample_rows(&x, 2, &mut y)?;
            let mut z = cuda.alloc(4, 3)?;
            cuda.upsample_rows(&y, 2, &mut z)?;
            cuda.download(&z, &mut read)
        })
        .unwrap();
        assert_eq!(read, [1.0, 2.0, 3.0].repeat(4));
    }
}

#[test]
fn a_panic_in_the_middle_leaves_the_launcher_usable() {
    let Some(cuda) = device(Precision::F32) else {
        return;
    };
    let x = cuda.tensor(1, 2, &[1.0, 2.0]).unwrap();
    let mut y = cuda.alloc(2, 2).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        _ = cuda.recorded(|| panic!("on purpose"));
    }));
    assert!(panicked.is_err());
    cuda.upsample_rows(&x, 2, &mut y).unwrap();
    assert_eq!(values(&*cuda, &y), [1.0, 2.0, 1.0, 2.0]);
}
