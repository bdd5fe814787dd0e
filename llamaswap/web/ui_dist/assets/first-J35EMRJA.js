import{a}from"./chunk-FRVJRFIR.js";import"./chunk-3G3KZNRO.js";import"./chunk-MRHF7ZQT.js";import"./chunk-2VBIRC7Y.js";import"./chunk-HONXV5ZE.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
