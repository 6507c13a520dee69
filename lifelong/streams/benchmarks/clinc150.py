"""CLINC150: what people ask an assistant, 150 intents in ten domains of fifteen (Larson et al. 2019,
arXiv:1909.02027). One stage per domain unless `num_stages` says otherwise; out-of-scope rows are left out.

A local folder tells the domain of a row; the Hub's set does not, so the intents of every domain stand here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lifelong.errors import UserError
from lifelong.streams.config import Source
from lifelong.streams.cut import Cut
from lifelong.streams.data import read_rows
from lifelong.streams.scenarios import Part, Rows

DOMAINS = {
    "travel": "translate travel_alert flight_status timezone lost_luggage travel_suggestion carry_on "
    "travel_notification plug_type exchange_rate book_hotel international_visa vaccines book_flight "
    "car_rental",
    "banking": "transfer balance freeze_account transactions pay_bill spending_history bill_due routing "
    "pin_change account_blocked report_fraud min_payment interest_rate bill_balance order_checks",
    "utility": "timer definition find_phone time flip_coin calculator date roll_dice make_call alarm "
    "measurement_conversion weather spelling text share_location",
    "small_talk": "meaning_of_life fun_fact where_are_you_from what_can_i_ask_you who_made_you thank_you "
    "do_you_have_pets who_do_you_work_for goodbye greeting what_is_your_name what_are_your_hobbies "
    "are_you_a_bot tell_joke how_old_are_you",
    "work": "insurance_change pto_request payday rollover_401k pto_request_status insurance pto_used w2 "
    "schedule_meeting next_holiday meeting_schedule taxes pto_balance direct_deposit income",
    "credit_cards": "improve_credit_score replacement_card_duration application_status rewards_balance "
    "credit_score new_card apr report_lost_card damaged_card credit_limit international_fees "
    "credit_limit_change redeem_rewards expiration_date card_declined",
    "meta": "change_language change_user_name maybe user_name repeat yes change_speed no sync_device "
    "change_accent change_volume whisper_mode cancel reset_settings change_ai_name",
    "home": "shopping_list_update next_song todo_list_update reminder calendar reminder_update todo_list "
    "order_status what_song smart_home shopping_list play_music calendar_update update_playlist order",
    "auto_and_commute": "oil_change_how distance mpg oil_change_when tire_pressure uber "
    "schedule_maintenance gas_type tire_change last_maintenance current_location directions gas jump_start "
    "traffic",
    "kitchen_and_dining": "restaurant_reservation confirm_reservation restaurant_suggestion nutrition_info "
    "food_last cook_time ingredient_substitution calories restaurant_reviews how_busy accept_reservations "
    "ingredients_list cancel_reservation meal_suggestion recipe",
}


@dataclass(frozen=True, kw_only=True)
class Clinc150(Cut):
    """150 intents of queries to an assistant, one stage per domain."""

    hub: ClassVar[str] = "clinc/clinc_oos"
    needs: ClassVar[str] = "train.jsonl and test.jsonl (text, label; labels are the names of intents)"
    licence: ClassVar[str] = "CC BY 3.0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scenario == "domain":
            raise UserError("its domains share no labels, so `scenario` is class, task or recurring.")

    def parts(self, folder: Path) -> list[Part]:
        groups = {name: tuple(words.split()) for name, words in DOMAINS.items()}
        train, test = self._rows("train", folder), self._rows("test", folder)
        present = {row["label"] for row in train}
        known = {name: tuple(each for each in own if each in present) for name, own in groups.items()}
        known = {name: own for name, own in known.items() if own}
        return self.cut(train, test, known, len(known))

    def _rows(self, split: str, folder: Path) -> Rows:
        place = self.local(folder)
        if place is not None:
            file = place / f"{split}.jsonl"
            if not file.is_file():
                raise self.lacks(file.name)
            found = read_rows(Source(path=file.name), place, "clinc150")
        else:
            source = Source(path=self.hub, name="plus", split=split, columns={"label": "intent"})
            try:
                found = read_rows(source, folder, "clinc150")
            except UserError as error:
                raise self.offline(error) from None
        return [row for row in found if row["label"] != "oos"]
