"""Everything learns: first the head alone, then the backbone too, at a rate that ramps up."""

from nnunet_ssl.nnunet.downstream.protocols import Protocol

PROTOCOL = Protocol("fine-tuning", staged=True)
