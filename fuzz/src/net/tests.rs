use super::*;

/// A driver that does all by the book.
fn machine(peer: Kind) -> Machine {
    machine_of(1, peer)
}

fn machine_of(pairs: u8, peer: Kind) -> Machine {
    machine_with(Ways(0), pairs, peer)
}

fn machine_with(ways: Ways, pairs: u8, peer: Kind) -> Machine {
    let story = Story {
        ways,
        peers: [peer; PAIRS],
        more_pairs: pairs - 1,
        mq: true,
        legacy: false,
        features: u128::MAX,
        burst: 0xff,
        refused: 0,
        left_out: 0,
        odd: None,
        steps: vec![],
    };
    let machine = Machine::new(&story);
    assert!(machine.live);
    machine
}

#[test]
fn frames_by_the_book_pass_in_both_directions() {
    let mut machine = machine(Kind::Vnet);
    for moods in [0xff, 0x55, 0x55] {
        machine.step(Step::Moods(moods));
        let header = [0; 12];
        let (len, cut) = (60, 20);
        machine.step(Step::Frame { header, len, cut });
        machine.step(Step::Turn);
    }
    let (count, len) = (1, 2048);
    machine.step(Step::Buffers { count, len });
    let lens = [60; 4];
    machine.step(Step::OfferFrames { lens, later: 2 });
    machine.step(Step::FinishRead { nth: 0, len: 99 });
    machine.reset();
    assert_eq!(machine.nic.tx_statistics(0).unwrap().frames, 3);
    assert_eq!(machine.nic.rx_statistics(0).unwrap().frames, 2);
}

#[test]
fn a_frame_may_fill_several_buffers_and_wait_for_them() {
    let mut machine = machine(Kind::Vnet);
    let (lens, later) = ([200; 4], 0);
    for count in [0, 6] {
        machine.step(Step::Buffers { count, len: 64 });
        machine.step(Step::OfferFrames { lens, later });
        machine.step(Step::Turn);
    }
    let statistics = machine.nic.rx_statistics(0).unwrap();
    assert_eq!((statistics.frames, statistics.buffers), (2, 8));
}

#[test]
fn a_command_by_the_book_is_done() {
    let mut machine = machine(Kind::Vnet);
    machine.step(Step::Command {
        class: 5,
        command: 0,
        data: [0; 8],
        len: 8,
    });
    machine.step(Step::Turn);
    assert_eq!(machine.nic.ctrl_statistics().acknowledged, 1);
}

#[test]
fn a_frame_that_is_looped_back_comes_in() {
    let mut machine = machine(Kind::Loopback);
    let (count, len) = (1, 2048);
    machine.step(Step::Buffers { count, len });
    let header = [0; 12];
    let (len, cut) = (60, 20);
    machine.step(Step::Frame { header, len, cut });
    machine.step(Step::Turn);
    assert_eq!(machine.nic.rx_statistics(0).unwrap().frames, 1);
}

#[test]
fn several_pairs_are_taken_into_use_and_pass_frames() {
    let mut machine = machine_of(3, Kind::Vnet);
    machine.step(Step::UsePairs(2));
    machine.step(Step::Turn);
    assert_eq!(machine.nic.ctrl_statistics().acknowledged, 1);
    for pair in 0..3 {
        machine.step(Step::Pair(pair));
        machine.step(Step::Moods(0xff));
        machine.step(Step::Frame {
            header: [0; 12],
            len: 60,
            cut: 0,
        });
        machine.step(Step::Buffers {
            count: 1,
            len: 2048,
        });
        machine.step(Step::OfferFrames {
            lens: [60; 4],
            later: 0,
        });
        machine.step(Step::Turn);
        let pair = usize::from(pair);
        assert_eq!(machine.nic.tx_statistics(pair).unwrap().frames, 1, "{pair}");
        assert_eq!(machine.nic.rx_statistics(pair).unwrap().frames, 2, "{pair}");
    }
    machine.reset();
}

#[test]
fn frames_come_in_through_both_doors() {
    let mut machine = machine(Kind::Vnet);
    let lens = [60; 4];
    machine.step(Step::Buffers {
        count: 7,
        len: 2048,
    });
    // Read into lent buffers; handed over; read, but past a filter.
    machine.step(Step::OfferFrames { lens, later: 0 });
    machine.step(Step::SendFrame { len: 72 });
    let (verdict, at_peer) = (0xff, false);
    machine.step(Step::Filter { verdict, at_peer });
    machine.step(Step::OfferFrames { lens, later: 0 });
    machine.step(Step::Turn);
    assert_eq!(machine.nic.rx_statistics(0).unwrap().frames, 8);
    machine.reset();
}

#[test]
fn packed_rings_in_order_carry_what_split_ones_do() {
    let ways = Ways(Ways::PACKED | Ways::IN_ORDER);
    let mut machine = machine_with(ways, 1, Kind::Vnet);
    let lens = [60; 4];
    for _ in 0..8 {
        machine.step(Step::Moods(0xff));
        machine.step(Step::Frame {
            header: [0; 12],
            len: 60,
            cut: 20,
        });
        machine.step(Step::Buffers {
            count: 3,
            len: 2048,
        });
        machine.step(Step::Turn);
        machine.step(Step::OfferFrames { lens, later: 0 });
        machine.step(Step::Turn);
    }
    assert_eq!(machine.nic.tx_statistics(0).unwrap().frames, 8);
    assert_eq!(machine.nic.rx_statistics(0).unwrap().frames, 32);
    machine.reset();
}

#[test]
fn a_card_that_waits_before_it_sends_does_so_by_the_clock() {
    let mut machine = machine_with(Ways(Ways::TX_TIMER), 1, Kind::Vnet);
    machine.step(Step::Moods(0xff));
    machine.step(Step::Frames { count: 3 });
    let sent = |machine: &Machine| machine.nic.tx_statistics(0).unwrap().frames;
    assert_eq!(sent(&machine), 0);
    machine.step(Step::Wait { milliseconds: 5 });
    assert_eq!(sent(&machine), 3);
    machine.reset();
}

#[test]
fn commands_that_there_are_are_done() {
    // By class and command, as a step has them.
    for (class, command) in [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (3, 1),
        (4, 0),
        (5, 0),
        (5, 1),
        (5, 2),
        (6, 0),
        (6, 1),
    ] {
        let mut machine = machine_with(Ways(Ways::RSS | Ways::HASH), 3, Kind::Vnet);
        machine.step(Step::Command {
            class: 0x80 + class,
            command,
            data: [2, 0, 0, 0, 0, 0, 0, 0],
            len: 0,
        });
        machine.step(Step::Turn);
        let statistics = machine.nic.ctrl_statistics();
        assert_eq!(statistics.acknowledged, 1, "{class} {command}");
    }
}
