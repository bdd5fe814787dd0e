import{a}from"./chunk-KMCVR2KA.js";import"./chunk-3G3KZNRO.js";import"./chunk-XZV6WKUS.js";import"./chunk-2VBIRC7Y.js";import"./chunk-HONXV5ZE.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
