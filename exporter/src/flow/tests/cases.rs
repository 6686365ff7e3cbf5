//! Endings as the design's table has them, each with what one socket sees of it.

use flowend_probe_types::{ACK, FIN, RST, TcpState};

use super::super::*;
use super::script::{Script, incoming, out};

/// reason, by, reset_by, conn_state, history
pub(super) type Verdict = (Reason, Option<Side>, Option<Side>, &'static str, &'static str);

/// Endings as the design's table has them, each with what one socket sees of it.
pub(super) fn cases() -> Vec<(&'static str, Script, Verdict)> {
    use Reason::*;
    use Side::{Local, Remote};
    use TcpState::{Close, CloseWait, Established, FinWait1, FinWait2, LastAck, SynSent};
    vec![
        (
            "own FIN first, the peer's seen",
            out()
                .established()
                .moved(10, 20)
                .fin_out(FinWait1)
                .after(500)
                .fin_in(FinWait2)
                .closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADadFf"),
        ),
        (
            "own full close, the peer's FIN never seen",
            out().established().moved(10, 0).fin_out(FinWait1).closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADaF"),
        ),
        (
            "the peer's FIN first",
            out()
                .established()
                .moved(1, 2)
                .fin_in(Established)
                .after(500)
                .fin_out(LastAck)
                .closed(LastAck),
            (Fin, Some(Remote), None, "SF", "ShADadfF"),
        ),
        (
            "accepted, the peer closes",
            incoming()
                .established()
                .moved(1, 2)
                .fin_in(Established)
                .fin_out(LastAck)
                .closed(LastAck),
            (Fin, Some(Remote), None, "SF", "ShADadFf"),
        ),
        (
            "accepted, own FIN first",
            incoming()
                .established()
                .moved(0, 2)
                .fin_out(FinWait1)
                .fin_in(FinWait2)
                .closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADafF"),
        ),
        (
            "both FINs cross",
            out().established().fin_out(FinWait1).fin_in(FinWait1).closed(TcpState::Closing),
            (Fin, Some(Local), None, "SF", "ShAaFf"),
        ),
        (
            "reset by the application: CLOSE comes before its RST",
            out().established().moved(5, 0).closed(Established).out(RST | ACK, Close),
            (Reset, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "reset by the peer",
            out().established().moved(5, 0).r#in(RST | ACK, Established).closed(Established),
            (Reset, Some(Remote), Some(Remote), "RSTR", "ShADar"),
        ),
        (
            "accepted, reset by the peer",
            incoming().established().moved(0, 5).r#in(RST, Established).closed(Established),
            (Reset, Some(Remote), Some(Remote), "RSTO", "ShADaR"),
        ),
        (
            "own FIN, then the peer resets: who ended it is who sent the FIN",
            out().established().moved(5, 0).fin_out(FinWait1).r#in(RST, FinWait2).closed(FinWait2),
            (Reset, Some(Local), Some(Remote), "RSTR", "ShADaFr"),
        ),
        (
            "the peer's FIN, then an own RST",
            out()
                .established()
                .moved(5, 5)
                .fin_in(Established)
                .closed(CloseWait)
                .out(RST | ACK, Close),
            (Reset, Some(Remote), Some(Local), "RSTO", "ShADadfR"),
        ),
        (
            "refused",
            out().syn_out().r#in(RST | ACK, SynSent).closed(SynSent),
            (Refused, Some(Remote), Some(Remote), "REJ", "Sr"),
        ),
        (
            "never answered",
            out().syn_out().after(1_000_000).syn_out().gave_up(SynSent).closed(SynSent),
            (ConnectTimeout, None, None, "S0", "S"),
        ),
        (
            "closed before an answer",
            out().syn_out().closed(SynSent),
            (Aborted, None, None, "S0", "S"),
        ),
        (
            "given up while established",
            out().established().moved(5, 0).gave_up(Established).closed(Established),
            (Timeout, None, None, "S1", "ShADa"),
        ),
        (
            "own FIN never acknowledged",
            out().established().moved(5, 0).fin_out(FinWait1).gave_up(FinWait1).closed(FinWait1),
            (Timeout, Some(Local), None, "S2", "ShADaF"),
        ),
        (
            "an ICMP error answers the SYN",
            out().syn_out().closed(SynSent).error(113),
            (Unreachable, None, None, "S0", "S"),
        ),
        (
            "given up on the SYN, while an ICMP error had been seen",
            out().syn_out().gave_up(SynSent).closed(SynSent).error(113),
            (ConnectTimeout, None, None, "S0", "S"),
        ),
        (
            "destroyed while connecting",
            out().syn_out().closed(SynSent).error(103),
            (Aborted, None, None, "S0", "S"),
        ),
        (
            "keepalive without an answer, as the error report says",
            out()
                .established()
                .moved(5, 0)
                .after(9_000_000)
                .out(RST | ACK, Established)
                .closed_with_keepalive(Established, 3_000)
                .error(110),
            (Timeout, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "destroyed with keepalive on, as the error report says",
            out()
                .established()
                .moved(5, 0)
                .after(9_000_000)
                .out(RST | ACK, Established)
                .closed_with_keepalive(Established, 3_000)
                .error(103),
            (Aborted, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "keepalive without an answer, no error report",
            out()
                .established()
                .moved(5, 0)
                .after(9_000_000)
                .out(RST | ACK, Established)
                .closed_with_keepalive(Established, 3_000),
            (Timeout, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "destroyed before keepalive could give up, no error report",
            out()
                .established()
                .moved(5, 0)
                .after(1_000_000)
                .out(RST | ACK, Established)
                .closed_with_keepalive(Established, 3_000),
            (Aborted, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "zero-window probes without an answer",
            out().established().moved(5, 0).closed(Established).error(110),
            (Timeout, None, None, "S1", "ShADa"),
        ),
        (
            "full close, and the peer's data comes before its ACK",
            out().established().moved(5, 0).fin_out(FinWait1).closed_by_late_data(FinWait1),
            (Reset, Some(Local), Some(Local), "RSTO", "ShADadFR"),
        ),
        (
            "full close, and the peer's data comes with its ACK",
            incoming().established().moved(5, 0).fin_out(FinWait1).closed_by_late_data(FinWait2),
            (Reset, Some(Local), Some(Local), "RSTR", "ShADadfr"),
        ),
        (
            "destroyed while established (ss -K)",
            out().established().moved(5, 0).out(RST | ACK, Established).closed(Established),
            (Aborted, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "the closing segments were lost",
            out().established().moved(5, 0).closed(Established),
            (Vanished, None, None, "S1", "ShADa"),
        ),
        (
            "a forged RST outside the window, then an orderly end",
            out()
                .established()
                .moved(5, 5)
                .forged(RST, 70_000)
                .fin_out(FinWait1)
                .fin_in(FinWait2)
                .closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADadFf"),
        ),
        (
            "an inexact RST inside the window, then an orderly end",
            out()
                .established()
                .moved(5, 5)
                .forged(RST, 100)
                .fin_in(Established)
                .fin_out(LastAck)
                .closed(LastAck),
            (Fin, Some(Remote), None, "SF", "ShADadfF"),
        ),
        (
            "a forged FIN, then an own reset",
            out()
                .established()
                .moved(5, 5)
                .forged(FIN | ACK, 500)
                .after(1000)
                .closed(Established)
                .out(RST, Close),
            (Reset, Some(Local), Some(Local), "RSTO", "ShADadR"),
        ),
        (
            "more forged segments than are remembered, then a reset",
            (1..20)
                .fold(out().established().moved(5, 5), |s, n| {
                    s.forged(RST, n * 10).forged(FIN, n * 10)
                })
                .r#in(RST, Established)
                .closed(Established),
            (Reset, Some(Remote), Some(Remote), "RSTR", "ShADadr"),
        ),
    ]
}
